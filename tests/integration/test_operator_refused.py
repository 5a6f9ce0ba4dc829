"""A spec that is refused, on a real API server: what was accepted last is put back, and suspend acts all the same."""

from __future__ import annotations

from typing import Any

import pytest
from operator_at_work import make_resource, operator_at_work
from support.kube_objects import DEPLOYMENTS, MOED, Body, KubeObjects, conditions

SERVICES_OF_TINY = ("tiny-scheduler", "tiny-loader", "tiny-predictor")
REFUSED_HERE: dict[str, Any] = {"cache": {"hostPath": "/etc"}}
REFUSED_BY_SERVER: dict[str, Any] = {
    "services": {
        "scheduler": {"podTemplate": {"spec": {"containers": [{"name": "main", "imagePullPolicy": "Sometimes"}]}}}
    }
}
either_refusal = pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(REFUSED_HERE, "HostPathNotAllowed", id="by the operator"),
        pytest.param(REFUSED_BY_SERVER, "Rejected", id="by the API server"),
    ],
)


def accepted(body: Body) -> tuple[str, str]:
    condition = conditions(body).get("SpecAccepted", {})
    return str(condition.get("status")), str(condition.get("reason"))


def replicas(body: Body | None) -> int:
    return int(body["spec"]["replicas"]) if body else -1


async def refuse(kube: KubeObjects, change: dict[str, Any], reason: str) -> None:
    """Of a resource whose first spec was accepted."""
    await make_resource(kube, model={"source": "hf://org/name"})
    await kube.until(MOED, "tiny", lambda body: accepted(body)[0] == "True")
    await kube.merge(MOED, "tiny", {"spec": change})
    await kube.until(MOED, "tiny", lambda body: accepted(body) == ("False", reason))


@either_refusal
async def test_a_child_that_was_edited_is_put_back(kube: KubeObjects, change: dict[str, Any], reason: str) -> None:
    async with operator_at_work(kube):
        await refuse(kube, change, reason)
        await kube.merge(DEPLOYMENTS, "tiny-scheduler", {"spec": {"replicas": 3}})
        await kube.until(DEPLOYMENTS, "tiny-scheduler", lambda body: replicas(body) == 1)
        await kube.delete(DEPLOYMENTS, "tiny-predictor")
        await kube.until(DEPLOYMENTS, "tiny-predictor", bool)


@either_refusal
async def test_suspend_acts_and_is_taken_back(kube: KubeObjects, change: dict[str, Any], reason: str) -> None:
    async with operator_at_work(kube):
        await refuse(kube, change, reason)
        for is_suspended, wanted in ((True, 0), (False, 1)):
            await kube.merge(MOED, "tiny", {"spec": {"suspend": is_suspended}})
            for name in SERVICES_OF_TINY:
                await kube.until(DEPLOYMENTS, name, lambda body, wanted=wanted: replicas(body) == wanted)  # type: ignore[misc]
        resource = await kube.until(MOED, "tiny", lambda body: accepted(body) == ("False", reason))
    assert conditions(resource)["Ready"]["reason"] == reason


async def test_suspend_acts_although_nothing_is_remembered_of_what_was_accepted(kube: KubeObjects) -> None:
    async with operator_at_work(kube):
        await refuse(kube, REFUSED_HERE, "HostPathNotAllowed")
    await kube.merge(MOED, "tiny", {"status": {"accepted": None}}, subresource="status")
    await kube.merge(MOED, "tiny", {"spec": {"suspend": True}})
    async with operator_at_work(kube):
        for name in SERVICES_OF_TINY:
            await kube.until(DEPLOYMENTS, name, lambda body: replicas(body) == 0)
