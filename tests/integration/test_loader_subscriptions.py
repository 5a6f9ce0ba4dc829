"""Workers subscribe to a real loader and beat; watchers see them come and go, and what is wrong with a beat is said."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from loader_clients import FakeWorker, client, code_of, loader, running, watch_until
from loader_models import NUM_LAYERS, TOP_K
from loader_source import TIMEOUT_SECONDS

from emoe.v1 import loader_pb2 as pb


async def test_watchers_see_workers_come_beat_and_go(own_model: Path) -> None:
    async with loader(own_model) as (stub, model):
        watch: Any = stub.WatchWorkers(pb.WatchWorkersRequest())
        assert await watch_until(watch, lambda workers: not workers) == []
        worker = FakeWorker(stub, model)
        await worker.beat()
        (seen,) = await watch_until(watch, bool)
        assert seen == worker.state
        worker.state.num_running = 3
        worker.state.counters.stall_seconds = 1.5
        await worker.beat()
        (seen,) = await watch_until(watch, lambda workers: workers[0].num_running == 3)
        assert seen == worker.state
        await worker.plan()
        await worker.leave()
        assert await watch_until(watch, lambda workers: not workers) == []


async def test_a_worker_that_dies_is_removed(own_model: Path) -> None:
    async with running(own_model) as host, client(host.address) as (stub, model):
        watch: Any = stub.WatchWorkers(pb.WatchWorkersRequest())
        async with client(host.address) as (other, _):
            await FakeWorker(other, model).beat()
            await watch_until(watch, bool)
        assert await watch_until(watch, lambda workers: not workers) == []


async def test_a_worker_that_stops_beating_is_removed(own_model: Path) -> None:
    async with loader(own_model, heartbeat_timeout_seconds=0.05) as (stub, model):
        worker = FakeWorker(stub, model)
        await worker.beat()
        assert await code_of(worker.call) is grpc.StatusCode.UNAVAILABLE


async def test_a_worker_that_subscribes_again_ends_its_older_stream(own_model: Path) -> None:
    async with loader(own_model) as (stub, model):
        first, second = FakeWorker(stub, model), FakeWorker(stub, model)
        await first.beat()
        await first.plan()
        await second.beat()
        await second.plan()
        assert await code_of(first.call) is grpc.StatusCode.UNAVAILABLE
        watch: Any = stub.WatchWorkers(pb.WatchWorkersRequest())
        assert len(await watch_until(watch, bool)) == 1


async def test_draining_ends_subscriptions_and_watches(own_model: Path) -> None:
    async with running(own_model, drain_seconds=60) as host, client(host.address) as (stub, model):
        draining = asyncio.create_task(host.run())
        worker = FakeWorker(stub, model)
        await worker.beat()
        watch: Any = stub.WatchWorkers(pb.WatchWorkersRequest())
        await watch_until(watch, bool)
        await worker.plan()
        host.stop()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await draining
        assert await code_of(worker.call) is grpc.StatusCode.UNAVAILABLE
        assert await code_of(watch) is grpc.StatusCode.UNAVAILABLE


def bad_states() -> Iterator[tuple[str, Callable[[pb.WorkerState], None], grpc.StatusCode]]:
    invalid, refused = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
    yield "no worker id", lambda s: s.ClearField("worker_id"), invalid
    yield "no address", lambda s: s.ClearField("address"), invalid
    yield "no model", lambda s: s.ClearField("model"), invalid
    yield "another model", lambda s: setattr(s.model, "digest", "other"), refused
    yield "too few slots", lambda s: setattr(s, "num_slots", NUM_LAYERS * TOP_K - 1), refused
    yield "residents of another shape", lambda s: setattr(s.resident, "bits", b"\0" * 99), invalid
    yield "step costs below nothing", lambda s: setattr(s.step_costs, "base_seconds", -1.0), invalid
    yield "no such miss policy", lambda s: setattr(s, "miss_policy", "guess"), invalid


BAD_STATES = list(bad_states())


@pytest.mark.parametrize(("spoil", "code"), [bad[1:] for bad in BAD_STATES], ids=[bad[0] for bad in BAD_STATES])
async def test_a_bad_heartbeat_is_refused_and_registers_nothing(
    own_model: Path, spoil: Callable[[pb.WorkerState], None], code: grpc.StatusCode
) -> None:
    async with loader(own_model) as (stub, model):
        worker = FakeWorker(stub, model)
        spoil(worker.state)
        await worker.beat()
        assert await code_of(worker.call) is code
        watch: Any = stub.WatchWorkers(pb.WatchWorkersRequest())
        assert (await watch.read()).workers == []


async def test_a_later_bad_heartbeat_removes_the_worker(own_model: Path) -> None:
    async with loader(own_model) as (stub, model):
        worker = FakeWorker(stub, model)
        await worker.beat()
        await worker.plan()
        worker.state.worker_id = "somebody else"
        await worker.beat()
        assert await code_of(worker.call) is grpc.StatusCode.INVALID_ARGUMENT
