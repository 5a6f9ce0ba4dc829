"""A real API server and `MoEDeployment.parse` refuse and take the same resources, with the same words."""

from __future__ import annotations

from typing import Any

import pytest
from cluster.refused_cases import ACCEPTED, CHANGES, REFUSED, VALID, Case, apply_patch
from support.kube_objects import MOED, KubeObjects

from emoe.api.resource import MoEDeployment

DRY = f"{MOED}?dryRun=All&fieldValidation=Strict"


def in_namespace(body: dict[str, Any], kube: KubeObjects) -> dict[str, Any]:
    return {**body, "metadata": {**body["metadata"], "namespace": kube.namespace}}


async def refusal(kube: KubeObjects, body: dict[str, Any]) -> str:
    with pytest.raises(AssertionError) as caught:
        await kube.create(DRY, in_namespace(body, kube))
    return str(caught.value)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.id)
async def test_a_resource_that_cannot_be_is_refused_with_words_that_help(kube: KubeObjects, case: Case) -> None:
    message = await refusal(kube, apply_patch(case.patch))
    assert [word for word in case.words if word not in message] == [], message


@pytest.mark.parametrize("patch", [patch for _, patch in ACCEPTED], ids=[name for name, _ in ACCEPTED])
async def test_a_resource_that_can_be_comes_back_as_it_is_parsed_without_the_server(
    kube: KubeObjects, patch: dict[str, Any]
) -> None:
    body = apply_patch(patch)
    defaulted = await kube.create(DRY, in_namespace(body, kube))
    assert MoEDeployment.parse(defaulted).spec == MoEDeployment.parse(body).spec


@pytest.mark.parametrize("case", CHANGES, ids=lambda case: case.id)
async def test_a_change_of_the_model_is_refused(kube: KubeObjects, case: Case) -> None:
    await kube.create(MOED, in_namespace(VALID, kube))
    with pytest.raises(AssertionError) as caught:
        await kube.merge(MOED, VALID["metadata"]["name"], case.patch)
    assert [word for word in case.words if word not in str(caught.value)] == []


async def test_every_default_is_filled_in_by_the_server(kube: KubeObjects) -> None:
    spec = (await kube.create(DRY, in_namespace(VALID, kube)))["spec"]
    assert spec == {
        "model": {"source": "demo://"},
        "experts": {
            "memory": "25%",
            "missPolicy": "reroute",
            "strategy": "emoe",
            "refreshIntervalPrompts": 40,
            "planner": "global",
        },
        "scheduling": {"policy": "ontime", "maxQueuedRequests": 256, "identifyTasks": True},
        "workers": {"replicas": 1, "maxContext": 2048, "maxConcurrency": 8},
        "services": {"scheduler": {"replicas": 1}},
        "service": {"type": "ClusterIP", "port": 8000},
        "rollout": {"drainSeconds": 60},
        "suspend": True,
    }


async def test_nulls_count_as_left_out(kube: KubeObjects) -> None:
    body = {**VALID, "spec": {"model": {"source": "demo://", "revision": None}, "workers": None, "cache": None}}
    spec = (await kube.create(DRY, in_namespace(body, kube)))["spec"]
    assert spec["workers"]["replicas"] == MoEDeployment.parse(body).spec.workers.replicas == 1
    assert "cache" not in spec


async def test_a_resource_without_workers_can_be_scaled(kube: KubeObjects) -> None:
    await kube.create(MOED, in_namespace(VALID, kube))
    scaled = await kube.merge(MOED, "tiny", {"spec": {"replicas": 3}}, subresource="scale")
    assert scaled["spec"]["replicas"] == 3
    stored = await kube.get(MOED, "tiny")
    assert stored is not None
    assert stored["spec"]["workers"]["replicas"] == 3


async def test_a_whole_status_is_kept_as_it_is_written(kube: KubeObjects) -> None:
    condition = {
        **{"type": "Ready", "status": "False", "reason": "Loading", "message": "3 of 9 files"},
        **{"lastTransitionTime": "2030-01-01T00:00:00Z", "observedGeneration": 1},
    }
    geometry = {"numLayers": 2, "moeLayers": [0, 1], "numExperts": 4, "topK": 1, "expertBytes": 64, "baseBytes": 32}
    status = {
        "observedGeneration": 1,
        "conditions": [condition],
        "address": "tiny.default.svc:8000",
        "model": {"revision": "abc", "bytesDone": 2**40, "bytesTotal": 2**41, "geometry": geometry},
        "residency": {"summary": "48/192", "hitRatio": "0.87"},
        "workers": {"replicas": 1, "ready": 0},
        "replicas": 1,
        "selector": "a=b",
    }
    await kube.create(MOED, in_namespace(VALID, kube))
    kept = await kube.merge(MOED, "tiny", {"status": status}, subresource="status")
    assert kept["status"] == status
    read = MoEDeployment.parse(kept).status
    again = await kube.merge(MOED, "tiny", {"status": read.to_dict()}, subresource="status")
    assert MoEDeployment.parse(again).status == read
