"""What `helm test` runs, against an API server and a front door of this process."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration, CustomObjectsApi
from support import charts

from emoe.v1 import generation_pb2, scheduler_pb2_grpc
from emoe_operator import smoke

ITEMS = "/apis/emoe.dev/v1alpha1/namespaces/team-a/moedeployments"


def condition(kind: str, status: str, *, generation: int = 1, **more: str) -> dict[str, Any]:
    return {"type": kind, "status": status, "observedGeneration": generation, "reason": "Because", **more}


@dataclasses.dataclass
class Cluster:
    """Keeps one resource. Each reading takes the next of `statuses`, then the last one again and again.

    `lingers` is for how many readings the resource is still there after its deletion; `failures` are answered first.
    """

    statuses: Sequence[dict[str, Any]]
    lingers: int = 0
    failures: list[int] = dataclasses.field(default_factory=list)
    log: list[str] = dataclasses.field(default_factory=list)
    made: dict[str, Any] | None = None
    num_readings: int = 0
    was_read: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    deleting: bool = False

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post(ITEMS, self._create)
        app.router.add_get(ITEMS + "/smoke", self._read)
        app.router.add_delete(ITEMS + "/smoke", self._delete)
        return app

    async def _create(self, request: web.Request) -> web.Response:
        if self.made is not None:
            return web.json_response({"message": "there already"}, status=409)
        self.made = await request.json()
        self.log.append("create")
        return web.json_response(self.made, status=201)

    async def _read(self, _: web.Request) -> web.Response:
        if self.failures:
            return web.json_response({}, status=self.failures.pop())
        if self.deleting and not self._still_lingers():
            self.made, self.deleting = None, False
        if self.made is None:
            return web.json_response({}, status=404)
        self.num_readings += 1
        self.was_read.set()
        status = self.statuses[min(self.num_readings, len(self.statuses)) - 1]
        return web.json_response({**self.made, "metadata": {"name": "smoke", "generation": 1}, "status": status})

    def _still_lingers(self) -> bool:
        self.lingers -= 1
        return self.lingers >= 0

    async def _delete(self, request: web.Request) -> web.Response:
        if self.made is None:
            return web.json_response({}, status=404)
        self.log.append(f"delete {request.query['propagationPolicy']}")
        self.deleting = True
        return web.json_response({})


class FrontDoor(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Answers with these words, or with UNAVAILABLE if there are none at all."""

    def __init__(self, words: Sequence[str] | None) -> None:
        self._words = words

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        if self._words is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "no worker")
        for number, word in enumerate(self._words or ()):
            yield generation_pb2.GenerateResponse(text=word, token_ids=[number])


@contextlib.asynccontextmanager
async def front_door(words: Sequence[str] | None) -> AsyncIterator[str]:
    server = grpc.aio.server()
    scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(FrontDoor(words), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@contextlib.asynccontextmanager
async def objects_of(cluster: Cluster, trial: smoke.Trial) -> AsyncIterator[smoke.ApiObjects]:
    runner = web.AppRunner(cluster.app())
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        configuration = Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
        async with ApiClient(configuration) as client:
            yield smoke.ApiObjects(CustomObjectsApi(client), trial)
    finally:
        await runner.cleanup()


def trial(*, timeout_seconds: float = 20.0) -> smoke.Trial:
    return smoke.Trial(namespace="team-a", name="smoke", timeout_seconds=timeout_seconds, poll_seconds=0.01)


async def try_out(cluster: Cluster, *, timeout_seconds: float = 20.0) -> str:
    tried = trial(timeout_seconds=timeout_seconds)
    async with objects_of(cluster, tried) as objects:
        return await smoke.try_out(objects, tried)


def ready_at(address: str) -> dict[str, Any]:
    return {"address": address, "conditions": [condition("Ready", "True")]}


LOADING = {"conditions": [condition("Ready", "False", message="12 of 40 MiB are fetched")]}


async def test_a_sound_installation_passes_and_nothing_stays() -> None:
    async with front_door(["Paris", "."]) as address:
        cluster = Cluster(statuses=[{}, LOADING, ready_at(address)])
        assert await try_out(cluster) == "Paris."
    assert cluster.log == ["create", "delete Foreground"]
    assert cluster.made is None


async def test_what_is_made_is_the_model_that_ships() -> None:
    manifest = trial().manifest
    assert manifest["spec"]["model"]["source"] == "demo://"
    assert manifest["metadata"] == {"name": "smoke", "namespace": "team-a"}


async def test_the_end_waits_until_all_children_are_gone() -> None:
    async with front_door(["Paris"]) as address:
        cluster = Cluster(statuses=[ready_at(address)], lingers=3)
        await try_out(cluster)
    assert cluster.lingers < 0


async def test_what_an_earlier_test_left_is_removed_first() -> None:
    async with front_door(["Paris"]) as address:
        cluster = Cluster(statuses=[ready_at(address)], made={"left": "over"})
        await try_out(cluster)
    assert cluster.log == ["delete Foreground", "create", "delete Foreground"]


async def test_ready_of_an_earlier_generation_does_not_count() -> None:
    old = {"address": "nowhere", "conditions": [condition("Ready", "True", generation=0)]}
    async with front_door(["Paris"]) as address:
        assert await try_out(Cluster(statuses=[old, ready_at(address)])) == "Paris"


async def test_an_api_server_that_is_away_for_a_moment_is_asked_again() -> None:
    async with front_door(["Paris"]) as address:
        assert await try_out(Cluster(statuses=[ready_at(address)], failures=[503, 429])) == "Paris"


async def test_never_ready_fails_with_what_the_conditions_say_and_nothing_stays() -> None:
    cluster = Cluster(statuses=[LOADING])
    with pytest.raises(smoke.SmokeError, match="12 of 40 MiB are fetched"):
        await try_out(cluster, timeout_seconds=0.3)
    assert cluster.made is None


async def test_a_refused_generate_fails_by_its_status_and_nothing_stays() -> None:
    async with front_door(None) as address:
        cluster = Cluster(statuses=[ready_at(address)])
        with pytest.raises(smoke.SmokeError, match="UNAVAILABLE: no worker"):
            await try_out(cluster)
    assert cluster.made is None


async def test_an_answer_without_a_token_fails() -> None:
    async with front_door([]) as address:
        with pytest.raises(smoke.SmokeError, match="without a token"):
            await try_out(Cluster(statuses=[ready_at(address)]))


async def test_what_does_not_go_fails_the_test() -> None:
    async with front_door(["Paris"]) as address:
        cluster = Cluster(statuses=[ready_at(address)], lingers=10_000)
        with pytest.raises(smoke.SmokeError, match="still there"):
            await try_out(cluster, timeout_seconds=0.5)


async def test_an_ended_test_removes_what_it_made() -> None:
    cluster = Cluster(statuses=[LOADING])
    task = asyncio.create_task(try_out(cluster))
    async with asyncio.timeout(20):
        await cluster.was_read.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cluster.log == ["create", "delete Foreground"]


def test_the_charts_arguments_are_understood() -> None:
    (pod,) = charts.of_kind(charts.render({}), "Pod")
    (container,) = charts.pod_of(pod)["containers"]
    assert container["command"] == ["python", "-m", smoke.__name__]
    parsed = smoke.parse_arguments(container["args"])
    assert (parsed.namespace, parsed.name, parsed.timeout_seconds) == (charts.NAMESPACE, "smoke-emoe", 240.0)
