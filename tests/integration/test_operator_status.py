"""From a model that is fetched to one that is served: what the status says on the way, on a real API server."""

from __future__ import annotations

import contextlib

from operator_at_work import NOBODY, make_resource, num_requests, operator_at_work, start_pods
from operator_loader import fetching_model, ready_model, told_loader, worker
from support.kube_objects import DEPLOYMENTS, EVENTS, MOED, KubeObjects, conditions, until

SERVICES_OF_TINY = ("tiny-scheduler", "tiny-loader", "tiny-predictor")


def reason(body: dict, kind: str) -> str:  # type: ignore[type-arg]
    return str(conditions(body).get(kind, {}).get("reason"))


async def test_a_resource_becomes_ready_once_its_model_and_its_pods_are(kube: KubeObjects) -> None:
    await make_resource(kube)
    async with told_loader() as loader, operator_at_work(kube, dial=lambda _: loader.address):
        await loader.tell(fetching_model(1 << 20))
        fetching = await kube.until(MOED, "tiny", lambda body: reason(body, "ModelReady") == "ModelFetching")
        assert fetching["status"]["model"]["bytesTotal"] == 1 << 30
        assert await kube.get(DEPLOYMENTS, "tiny-worker") is None
        await loader.tell(ready_model())
        for name in (*SERVICES_OF_TINY, "tiny-worker"):
            await start_pods(kube, name)
        await loader.tell(ready_model(), worker("tiny-worker-0", num_resident=4, num_hits=87, num_choices=100))
        ready = await kube.until(MOED, "tiny", lambda body: conditions(body).get("Ready", {}).get("status") == "True")
        served = await kube.until(
            MOED, "tiny", lambda body: body["status"].get("residency", {}).get("summary") == "4/64"
        )
    assert {kind: one["status"] for kind, one in conditions(ready).items()} == {
        **dict.fromkeys(("Ready", "Available", "SpecAccepted", "ModelReady", "ServicesReady", "WorkersReady"), "True"),
        "Progressing": "False",
    }
    assert served["status"]["residency"]["hitRatio"] == "0.87"
    assert ready["status"]["model"]["geometry"]["numExperts"] == 32
    told = [event for event in await kube.list(EVENTS) if event["reason"] == "Serving"]
    assert told
    assert all(event["type"] == "Normal" for event in told)


async def test_workers_outlive_a_loader_that_goes_and_comes_back(kube: KubeObjects) -> None:
    await make_resource(kube)
    address = NOBODY
    async with contextlib.AsyncExitStack() as stack:
        loader = await stack.enter_async_context(told_loader())
        address = loader.address
        await stack.enter_async_context(operator_at_work(kube, dial=lambda _: address))
        await loader.tell(ready_model())
        before = await kube.until(DEPLOYMENTS, "tiny-worker", bool)
        await kube.until(MOED, "tiny", lambda body: reason(body, "ModelReady") == "ModelReady")
        await loader.tell(fetching_model(1))
        after = await kube.until(MOED, "tiny", lambda body: reason(body, "ModelReady") == "ModelFetching")
        assert after["status"]["model"]["geometry"]["numExperts"] == 32
        standing = await kube.get(DEPLOYMENTS, "tiny-worker")
        assert standing is not None
        assert standing["metadata"]["uid"] == before["metadata"]["uid"]


async def test_progress_alone_is_written_seldom_but_in_the_end(kube: KubeObjects) -> None:
    await make_resource(kube)
    async with told_loader() as loader, operator_at_work(kube, dial=lambda _: loader.address) as metrics:
        await loader.tell(fetching_model(0))
        await kube.until(MOED, "tiny", lambda body: reason(body, "ModelReady") == "ModelFetching")
        before = num_requests(metrics, "PATCH")
        for megabytes in range(100):
            await loader.tell(fetching_model(megabytes << 20))
        await kube.until(MOED, "tiny", lambda body: body["status"]["model"]["bytesDone"] == 99 << 20)
        assert num_requests(metrics, "PATCH") - before <= 5


async def test_a_suspended_resource_leaves_its_loader_alone(kube: KubeObjects) -> None:
    await make_resource(kube)
    async with told_loader() as loader, operator_at_work(kube, dial=lambda _: loader.address):
        await loader.tell(ready_model())
        await kube.until(DEPLOYMENTS, "tiny-worker", bool)
        await kube.merge(MOED, "tiny", {"spec": {"suspend": True}})
        await kube.until(MOED, "tiny", lambda body: reason(body, "Ready") == "Suspended")

        async def left() -> bool:
            return loader.num_streams == 0

        await until(left)
        await kube.merge(MOED, "tiny", {"spec": {"suspend": False}})

        async def followed() -> bool:
            return loader.num_streams == 2

        await until(followed)


async def test_a_deleted_resource_has_no_stream_left(kube: KubeObjects) -> None:
    await make_resource(kube)
    async with told_loader() as loader, operator_at_work(kube, dial=lambda _: loader.address):
        await loader.tell(ready_model())
        await kube.until(DEPLOYMENTS, "tiny-worker", bool)
        await kube.delete(MOED, "tiny")

        async def left() -> bool:
            return loader.num_streams == 0

        await until(left)
