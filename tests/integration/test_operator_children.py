"""The operator's hands on a real API server: children made, put back, left alone, removed."""

from __future__ import annotations

import uuid
from typing import Any

from operator_at_work import make_resource, num_reconciles, num_requests, operator_at_work
from support.kube_objects import (
    ACCOUNTS,
    CLAIMS,
    DEPLOYMENTS,
    EVENTS,
    MOED,
    POLICIES,
    SERVICES,
    KubeObjects,
    conditions,
    until,
)

from emoe_operator.metrics import Metrics


def main_container(body: dict[str, Any]) -> dict[str, Any]:
    return next(one for one in body["spec"]["template"]["spec"]["containers"] if one["name"] == "main")


async def settled(kube: KubeObjects, metrics: Metrics, name: str = "tiny") -> None:
    """Until a look at the resource, made because of an event, wrote nothing."""

    async def look() -> bool:
        before, reconciles = num_requests(metrics, "PATCH", "DELETE"), num_reconciles(metrics)
        await kube.merge(MOED, name, {"metadata": {"annotations": {"test/poke": uuid.uuid4().hex}}})
        await until(lambda: _more(metrics, reconciles))
        return num_requests(metrics, "PATCH", "DELETE") == before

    await until(look)


async def _more(metrics: Metrics, reconciles: int) -> bool:
    return num_reconciles(metrics) > reconciles


async def test_a_resource_gets_its_children_and_no_finalizer(kube: KubeObjects) -> None:
    made = await make_resource(kube)
    async with operator_at_work(kube):
        await kube.until(DEPLOYMENTS, "tiny-scheduler", bool)
        resource = await kube.until(MOED, "tiny", lambda body: "status" in body)
    assert await kube.names(DEPLOYMENTS) == {"tiny-scheduler", "tiny-loader", "tiny-predictor"}
    assert await kube.names(SERVICES) == {"tiny", "tiny-loader", "tiny-predictor"}
    assert "tiny" in await kube.names(ACCOUNTS)
    owner = (await kube.list(DEPLOYMENTS))[0]["metadata"]["ownerReferences"][0]
    assert (owner["uid"], owner["controller"]) == (made["metadata"]["uid"], True)
    assert "finalizers" not in resource["metadata"]
    assert "annotations" not in resource["metadata"]
    assert resource["status"]["observedGeneration"] == 1
    assert conditions(resource)["SpecAccepted"]["status"] == "True"
    assert conditions(resource)["Ready"]["status"] == "False"


async def test_a_child_that_was_edited_is_put_back_and_foreign_fields_stay(kube: KubeObjects) -> None:
    await make_resource(kube)
    async with operator_at_work(kube) as metrics:
        rendered = await kube.until(DEPLOYMENTS, "tiny-scheduler", bool)
        await settled(kube, metrics)
        edit = {"containers": [{"name": "main", "image": "evil", "env": [{"name": "MINE", "value": "1"}]}]}
        patch = {"metadata": {"annotations": {"mine": "yes"}}, "spec": {"template": {"spec": edit}}}
        await kube.strategic(DEPLOYMENTS, "tiny-scheduler", patch)
        image = main_container(rendered)["image"]
        after = await kube.until(DEPLOYMENTS, "tiny-scheduler", lambda body: main_container(body)["image"] == image)
        await settled(kube, metrics)
    assert after["metadata"]["annotations"]["mine"] == "yes"
    assert {"name": "MINE", "value": "1"} in main_container(after)["env"]


async def test_a_services_port_that_was_edited_is_put_back(kube: KubeObjects) -> None:
    await make_resource(kube)
    async with operator_at_work(kube) as metrics:
        rendered = await kube.until(SERVICES, "tiny", bool)
        await settled(kube, metrics)
        [port] = rendered["spec"]["ports"]
        await kube.merge(SERVICES, "tiny", {"spec": {"ports": [{**port, "port": port["port"] + 1}]}})
        after = await kube.until(SERVICES, "tiny", lambda body: body["spec"]["ports"] == [port])
    assert after["metadata"]["uid"] == rendered["metadata"]["uid"]


async def test_a_child_that_was_deleted_comes_back(kube: KubeObjects) -> None:
    await make_resource(kube)
    async with operator_at_work(kube) as metrics:
        first = await kube.until(SERVICES, "tiny", bool)
        await settled(kube, metrics)
        await kube.delete(SERVICES, "tiny")
        await kube.until(SERVICES, "tiny", lambda body: body["metadata"]["uid"] != first["metadata"]["uid"])


async def test_a_field_that_is_no_longer_rendered_goes_away(kube: KubeObjects) -> None:
    await make_resource(kube, service={"annotations": {"cloud/lb": "internal"}})
    async with operator_at_work(kube):
        await kube.until(SERVICES, "tiny", lambda body: "cloud/lb" in body["metadata"]["annotations"])
        await kube.merge(MOED, "tiny", {"spec": {"service": {"annotations": None}}})
        await kube.until(SERVICES, "tiny", lambda body: "cloud/lb" not in body["metadata"]["annotations"])


async def test_what_is_no_longer_wanted_is_removed_and_what_is_not_ours_stays(kube: KubeObjects) -> None:
    await make_resource(kube, services={"predictor": {"storage": {"size": "1Gi"}}})
    stranger = {
        "metadata": {"name": "stranger", "labels": {"emoe.dev/moedeployment": "tiny"}},
        "spec": {"podSelector": {}},
    }
    async with operator_at_work(kube) as metrics:
        await until(lambda: kube.names(CLAIMS))
        await kube.create(POLICIES, stranger)
        await settled(kube, metrics)
        await kube.merge(MOED, "tiny", {"spec": {"services": None}})
        await settled(kube, metrics)
        claims = await kube.list(CLAIMS)
    # The finalizer of protection is the API server's: without its controller the claim stays, marked.
    assert all("deletionTimestamp" in claim["metadata"] for claim in claims)
    assert "stranger" in await kube.names(POLICIES)


async def test_a_name_that_is_taken_is_left_alone_and_said(kube: KubeObjects) -> None:
    await kube.create(SERVICES, {"metadata": {"name": "tiny"}, "spec": {"ports": [{"port": 80}], "clusterIP": "None"}})
    await make_resource(kube)
    async with operator_at_work(kube):
        ready = await kube.until(
            MOED, "tiny", lambda body: conditions(body).get("Ready", {}).get("reason") == "NameTaken"
        )
    assert "Service tiny" in conditions(ready)["Ready"]["message"]
    service = await kube.get(SERVICES, "tiny")
    assert service is not None
    assert "labels" not in service["metadata"]


async def test_a_paused_resource_is_not_touched(kube: KubeObjects) -> None:
    await make_resource(kube)
    async with operator_at_work(kube) as metrics:
        await kube.until(DEPLOYMENTS, "tiny-scheduler", bool)
        await settled(kube, metrics)
        await kube.merge(MOED, "tiny", {"metadata": {"annotations": {"emoe.dev/paused": "true"}}})
        await kube.until(MOED, "tiny", lambda body: conditions(body)["Progressing"]["reason"] == "Paused")
        await kube.merge(DEPLOYMENTS, "tiny-scheduler", {"spec": {"replicas": 3}})
        await settled(kube, metrics)
        during = await kube.get(DEPLOYMENTS, "tiny-scheduler")
        await kube.merge(MOED, "tiny", {"metadata": {"annotations": {"emoe.dev/paused": None}}})
        await kube.until(DEPLOYMENTS, "tiny-scheduler", lambda body: body["spec"]["replicas"] == 1)
    assert during is not None
    assert during["spec"]["replicas"] == 3


async def test_a_deletion_while_the_operator_is_down_needs_nothing_of_it(kube: KubeObjects) -> None:
    await make_resource(kube)
    async with operator_at_work(kube):
        await kube.until(MOED, "tiny", lambda body: "status" in body)
    await kube.delete(MOED, "tiny")
    assert await kube.get(MOED, "tiny") is None
    async with operator_at_work(kube) as metrics:
        await make_resource(kube, "other")
        await kube.until(MOED, "other", lambda body: "status" in body)
        assert num_requests(metrics, "DELETE") == 0


async def test_twenty_resources_settle_and_then_cost_nothing(kube: KubeObjects) -> None:
    names = [f"model-{number}" for number in range(20)]
    for name in names:
        await make_resource(kube, name)
    async with operator_at_work(kube) as metrics:
        for name in names:
            await kube.until(MOED, name, lambda body: "status" in body)
            await settled(kube, metrics, name)
        before = num_requests(metrics, "GET", "PATCH", "POST", "DELETE")
        reconciles = num_reconciles(metrics)
        for name in names:
            await kube.merge(MOED, name, {"metadata": {"annotations": {"test/poke": "again"}}})
        await until(lambda: _more(metrics, reconciles + len(names) - 1))
        assert num_requests(metrics, "GET", "PATCH", "POST", "DELETE") == before


async def test_an_operator_that_starts_anew_writes_nothing_to_what_stands(kube: KubeObjects) -> None:
    await make_resource(kube)
    async with operator_at_work(kube) as metrics:
        await kube.until(MOED, "tiny", lambda body: "status" in body)
        await settled(kube, metrics)
    before = {body["metadata"]["name"]: body["metadata"]["resourceVersion"] for body in await kube.list(DEPLOYMENTS)}
    async with operator_at_work(kube) as metrics:
        await until(lambda: _more(metrics, 0))
        await settled(kube, metrics)
        assert num_requests(metrics, "PATCH") == 0
    after = {body["metadata"]["name"]: body["metadata"]["resourceVersion"] for body in await kube.list(DEPLOYMENTS)}
    assert after == before


async def test_a_refused_spec_is_said_and_what_stood_serves_on(kube: KubeObjects) -> None:
    await make_resource(kube)
    async with operator_at_work(kube) as metrics:
        await kube.until(DEPLOYMENTS, "tiny-scheduler", bool)
        await settled(kube, metrics)
        await kube.merge(MOED, "tiny", {"spec": {"cache": {"hostPath": "/etc"}}})
        resource = await kube.until(MOED, "tiny", lambda body: conditions(body)["SpecAccepted"]["status"] == "False")
        assert conditions(resource)["SpecAccepted"]["reason"] == "HostPathNotAllowed"
        assert await kube.get(DEPLOYMENTS, "tiny-scheduler") is not None

        async def told() -> bool:
            events = await kube.list(EVENTS)
            return any(event["reason"] == "HostPathNotAllowed" and event["type"] == "Warning" for event in events)

        await until(told)
