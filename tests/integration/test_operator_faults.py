"""What the operator does when its surroundings misbehave, on a real API server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from operator_at_work import make_resource, num_requests, operator_at_work
from support.kube_objects import (
    DEPLOYMENTS,
    MOED,
    NAMESPACES,
    SERVICES,
    KubeObjects,
    conditions,
    until,
)

from emoe_operator.activity import WatchActivity
from emoe_operator.cache import Cache
from emoe_operator.client import KubeApi, open_client
from emoe_operator.errors import ApiError, NotInstalledError, WatchEndedError
from emoe_operator.executor import MAX_CORRECTIONS
from emoe_operator.intake import Intake, relist
from emoe_operator.kinds import CHILDREN
from emoe_operator.kinds import MOED as MOED_KIND
from emoe_operator.metrics import Metrics
from emoe_operator.watching import Watching


def reason(body: dict[str, Any], kind: str) -> str:
    return str(conditions(body).get(kind, {}).get("reason"))


class Wakes:
    def __init__(self) -> None:
        self.keys: set[tuple[str, str]] = set()

    def add(self, key: tuple[str, str]) -> None:
        self.keys.add(key)


async def test_who_fights_over_a_child_is_given_way_to_and_named(kube: KubeObjects) -> None:
    await make_resource(kube)
    async with operator_at_work(kube):
        await kube.until(DEPLOYMENTS, "tiny-scheduler", bool)
        for _ in range(MAX_CORRECTIONS):
            await kube.merge(DEPLOYMENTS, "tiny-scheduler", {"spec": {"replicas": 7}})
            await kube.until(DEPLOYMENTS, "tiny-scheduler", lambda body: body["spec"]["replicas"] == 1)
        await kube.merge(DEPLOYMENTS, "tiny-scheduler", {"spec": {"replicas": 7}})
        said = await kube.until(MOED, "tiny", lambda body: reason(body, "Ready") == "Contested")
        standing = await kube.get(DEPLOYMENTS, "tiny-scheduler")
    assert "tiny-scheduler" in conditions(said)["Ready"]["message"]
    assert standing is not None
    assert standing["spec"]["replicas"] == 7


async def test_a_namespace_that_ends_is_left_in_peace(kube: KubeObjects) -> None:
    await make_resource(kube)
    async with operator_at_work(kube) as metrics:
        await kube.until(MOED, "tiny", lambda body: "status" in body)
        await kube.delete(NAMESPACES, kube.namespace)
        await kube.delete(SERVICES, "tiny-loader")

        async def gave_up() -> bool:
            return 'reconciles_total{result="gone"}' in metrics.page().decode()

        await until(gave_up)
        resource = await kube.get(MOED, "tiny")
    assert resource is not None
    assert "Terminating" not in json.dumps(resource["status"])


async def test_a_status_is_never_written_to_a_successor(kube: KubeObjects) -> None:
    first = await make_resource(kube)
    await kube.delete(MOED, "tiny")
    async with open_client() as client:
        api = KubeApi(client, metrics=Metrics())
        with pytest.raises(ApiError) as gone:
            await api.apply_status(MOED_KIND, first, {"replicas": 1})
        assert gone.value.status == 404
        await make_resource(kube)
        with pytest.raises(ApiError) as other:
            await api.apply_status(MOED_KIND, first, {"replicas": 1})
        assert other.value.status == 409
    standing = await kube.get(MOED, "tiny")
    assert standing is not None
    assert "status" not in standing


async def test_a_child_deleted_while_nobody_watched_is_found_out_by_a_list(kube: KubeObjects) -> None:
    made = await make_resource(kube)
    cache, wakes = Cache(), Wakes()
    intake = Intake(cache, wakes)  # type: ignore[arg-type]
    intake.complete()
    meta = {"name": "tiny-loader", "namespace": kube.namespace, "uid": "ghost", "resourceVersion": "1"}
    cache.put(CHILDREN[0], {"metadata": {**meta, "labels": {"emoe.dev/moedeployment": "tiny"}}})
    async with open_client() as client:
        await relist(KubeApi(client, metrics=Metrics()), intake, namespaces=(kube.namespace,))
    key = (kube.namespace, "tiny")
    assert cache.children(key) == {}
    assert wakes.keys == {key}
    standing = cache.resource(key)
    assert standing is not None
    assert standing["metadata"]["uid"] == made["metadata"]["uid"]


async def test_watches_that_end_by_themselves_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    activity = WatchActivity(())
    watching = Watching(Intake(Cache(), Wakes()), namespaces=("x",), activity=activity, on_response=lambda *_: None)  # type: ignore[arg-type]
    with pytest.raises(WatchEndedError):
        await watching.run()


async def test_a_cluster_without_the_crd_is_refused_by_name(kube: KubeObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "emoe_operator.operation.MOED",
        CHILDREN[0].__class__(name="Nothing", group="emoe.dev", version="v1alpha1", plural="nothings"),
    )
    with pytest.raises(NotInstalledError, match=r"nothings\.emoe\.dev"):
        async with operator_at_work(kube) as metrics:
            await until(lambda: _requested(metrics))


async def _requested(metrics: Metrics) -> bool:
    return num_requests(metrics, "GET") > 0


async def test_a_look_is_a_span_and_no_manifest_carries_it(kube: KubeObjects) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    await make_resource(kube)
    async with operator_at_work(kube, tracer=provider.get_tracer("test")):
        await kube.until(MOED, "tiny", lambda body: "status" in body)
    provider.shutdown()
    spans = [span for span in exporter.get_finished_spans() if span.name == "reconcile"]
    assert spans
    assert dict(spans[0].attributes or {})["emoe.moedeployment.name"] == "tiny"
    assert "traceparent" not in json.dumps(await kube.list(DEPLOYMENTS)).lower()


async def test_an_operator_of_the_whole_cluster_serves_every_namespace(kube: KubeObjects) -> None:
    await make_resource(kube)
    async with operator_at_work(kube, namespaces=()):
        await kube.until(DEPLOYMENTS, "tiny-scheduler", bool)
