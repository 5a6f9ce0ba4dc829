"""A worker whose neighbours are away, come late or stay silent, and a worker that is told to stop meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.checkpoints import save_with_tokenizer
from support.engines import open_parts, random_prompts

from emoe.core.errors import NotReadyError
from emoe.core.experts import ExpertId
from emoe.core.generation import Sampling
from emoe.runtime.grids import ModelId
from emoe.v1 import loader_pb2, loader_pb2_grpc, predictor_pb2, predictor_pb2_grpc
from emoe.worker.loader_source import LoaderSource
from emoe.worker.plans import PlanSubscription
from emoe.worker.preparing import settings_without_effect
from emoe.worker.prompts import PromptEncoder
from emoe.worker.reporting import RoutingReporter
from emoe.worker.runner import EngineRunner
from emoe.worker.running_demand import OwnFrequencies, RunningForecast
from emoe.worker.sequence import Sequence, TokenEvent
from emoe.worker.service import WorkerService
from emoe.worker.settings import WorkerSettings
from emoe.worker.state import WorkerIdentity

WAIT_SECONDS = 20.0
START_SECONDS = 100.0
MODEL = ModelId(digest="d", family="qwen2_moe")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_with_tokenizer("qwen2_moe", tmp_path_factory.mktemp("model"))


@pytest.fixture
async def runner(folder: Path) -> AsyncIterator[EngineRunner]:
    with open_parts(folder, miss_policy="load", max_concurrency=1) as parts:
        made = EngineRunner(parts, loop=asyncio.get_running_loop(), on_ready=lambda ready: None)
        made.start()
        yield made
        await made.stop()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Predictor(predictor_pb2_grpc.PredictorServiceServicer):
    def __init__(self) -> None:
        self.reports: asyncio.Queue[Any] = asyncio.Queue()

    async def ReportRouting(self, request_iterator: Any, context: Any) -> predictor_pb2.ReportRoutingResponse:
        async for report in request_iterator:
            self.reports.put_nowait(report)
        return predictor_pb2.ReportRoutingResponse()


class Loader(loader_pb2_grpc.LoaderServiceServicer):
    def __init__(self) -> None:
        self.heartbeats: asyncio.Queue[Any] = asyncio.Queue()

    async def Subscribe(self, request_iterator: Any, context: Any) -> AsyncIterator[loader_pb2.SubscribeResponse]:
        async for heartbeat in request_iterator:
            self.heartbeats.put_nowait(heartbeat)
        return
        yield


@contextlib.asynccontextmanager
async def serving(servicer: Any, add: Any, port: int) -> AsyncIterator[None]:
    server = grpc.aio.server()
    add(servicer, server)
    assert server.add_insecure_port(f"127.0.0.1:{port}") == port
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


@contextlib.asynccontextmanager
async def running(work: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def generate(runner: EngineRunner, name: str, *, num_tokens: int = 1) -> None:
    """Returns at the first token."""
    (prompt,) = random_prompts([6])
    events: asyncio.Queue[TokenEvent] = asyncio.Queue()
    sampling = Sampling(max_tokens=num_tokens)
    sequence = Sequence(sequence_id=name, task="chat", token_ids=prompt, num_prompt_tokens=6, sampling=sampling, seed=0)
    runner.submit(sequence, events.put_nowait)
    assert (await events.get()).token_id is not None


async def test_counts_of_while_the_predictor_was_away_reach_it_when_it_comes(runner: EngineRunner) -> None:
    port = free_port()
    grid = (await runner.ask(lambda engine: engine.residency)).grid
    reporter = RoutingReporter(
        predictor=f"127.0.0.1:{port}", model=MODEL, grid=grid, runner=runner, worker_id="w", report_seconds=0.01
    )
    predictor = Predictor()
    async with asyncio.timeout(WAIT_SECONDS), running(reporter.run()):
        await generate(runner, "while away")
        await asyncio.to_thread(refused_once, port)
        async with serving(predictor, predictor_pb2_grpc.add_PredictorServiceServicer_to_server, port):
            report = await predictor.reports.get()
    choices = 6 * len(grid.moe_layers) * grid.rule.top_k
    assert sum(report.counts.values) == choices


def refused_once(port: int) -> None:
    """A moment in which somebody who connects is refused."""
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", port)) != 0


async def test_a_heartbeat_that_cannot_be_made_is_made_up_for_on_the_next_stream(runner: EngineRunner) -> None:
    port, states = free_port(), iter([None, "w1"])

    async def state() -> loader_pb2.WorkerState:
        worker_id = next(states, "w2")
        if worker_id is None:
            raise NotReadyError("the engine did not answer")
        return loader_pb2.WorkerState(worker_id=worker_id)

    grid = (await runner.ask(lambda engine: engine.residency)).grid
    subscription = PlanSubscription(
        loader=f"127.0.0.1:{port}", model=MODEL, grid=grid, runner=runner, heartbeat=state, heartbeat_seconds=0.01
    )
    loader = Loader()
    async with (
        asyncio.timeout(WAIT_SECONDS),
        serving(loader, loader_pb2_grpc.add_LoaderServiceServicer_to_server, port),
        running(subscription.run()),
    ):
        assert (await loader.heartbeats.get()).state.worker_id == "w1"


async def test_what_running_requests_will_route_is_told_at_once_and_its_demand_once_a_stream(folder: Path) -> None:
    port = free_port()
    with open_parts(folder, miss_policy="reroute", max_concurrency=1) as opened:
        options = dataclasses.replace(opened.options, own_routing_tokens=64)
        # Random weights may end an answer at any token.
        parts = dataclasses.replace(opened, options=options, eos_token_ids=frozenset())
        runner = EngineRunner(parts, loop=asyncio.get_running_loop(), on_ready=lambda ready: None)
        runner.start()
        grid = parts.residency.grid

        async def state() -> loader_pb2.WorkerState:
            return loader_pb2.WorkerState(worker_id="w")

        subscription = PlanSubscription(
            loader=f"127.0.0.1:{port}",
            model=MODEL,
            grid=grid,
            runner=runner,
            heartbeat=state,
            heartbeat_seconds=3600,
            forecast=RunningForecast(grid.shape, OwnFrequencies()),
        )
        loader = Loader()
        async with (
            asyncio.timeout(WAIT_SECONDS),
            serving(loader, loader_pb2_grpc.add_LoaderServiceServicer_to_server, port),
            running(subscription.run()),
        ):
            told = [(await loader.heartbeats.get()).state.running]
            await generate(runner, "one", num_tokens=150)
            while not told[-1].version:
                told.append((await loader.heartbeats.get()).state.running)
            while told[-1].version > told[-2].version:
                runner.news.set()
                told.append((await loader.heartbeats.get()).state.running)
        await runner.stop()
    assert (told[0].version, told[0].num_requests, sum(told[0].demand.values)) == (0, 0, 0)
    for before, after in itertools.pairwise(told):
        has_risen = after.version > before.version
        assert after.HasField("demand") == has_risen
        assert not has_risen or len(after.demand.values) == grid.shape[0] * grid.shape[1]


async def test_a_worker_in_a_long_step_says_what_it_last_knew_of_itself(
    runner: EngineRunner, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emoe.worker.service.STATE_SECONDS", 0.02)
    encoder = PromptEncoder.open(folder, vocab_size=300, max_context=64)
    service = WorkerService(runner=runner, encoder=encoder, eos_token_ids=frozenset())
    service.identity = WorkerIdentity(
        worker_id="w",
        address="a:1",
        model=MODEL,
        miss_policy="load",
        max_concurrency=1,
        max_waiting=0,
        max_context=64,
        slot_bytes=1,
    )
    await generate(runner, "one")
    known = await service.state()
    while not known.counters.num_prompts:
        known = await service.state()
    go_on = threading.Event()
    stalled = asyncio.create_task(runner.ask(lambda engine: go_on.wait(WAIT_SECONDS)))
    assert await service.state() == known
    go_on.set()
    await stalled


async def test_once_the_loader_is_known_to_be_away_every_further_expert_fails_at_once() -> None:
    source = LoaderSource(f"127.0.0.1:{free_port()}", MODEL, give_up_seconds=0.5)

    def read() -> float:
        began = time.monotonic()
        with pytest.raises(NotReadyError, match="is away"):
            source.read_into(ExpertId(0, 0), memoryview(bytearray(8)))
        return time.monotonic() - began

    first, second = await asyncio.to_thread(read), await asyncio.to_thread(read)
    assert first >= 0.5
    assert second < 0.4
    await asyncio.to_thread(source.close)


def test_a_source_that_is_closed_lets_go_of_whoever_waits_for_it() -> None:
    source = LoaderSource(f"127.0.0.1:{free_port()}", MODEL)
    outcome: list[Exception] = []

    def read() -> None:
        try:
            source.read_into(ExpertId(0, 0), memoryview(bytearray(8)))
        except NotReadyError as error:
            outcome.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    source.close()
    reader.join(WAIT_SECONDS)
    assert "shutting down" in str(outcome[0])


async def test_a_worker_that_still_waits_for_its_first_experts_stops_when_told(
    folder: Path,
) -> None:
    settings = {
        "model": str(folder),
        "expert_source": "loader",
        "loader": f"127.0.0.1:{free_port()}",
        "device": "cpu",
        "threads": 1,
    }
    code = (
        "import json, sys; from emoe.runtime.lifecycle import run_process; from emoe.worker.main import serve; "
        "from emoe.worker.settings import WorkerSettings; "
        "sys.exit(run_process(serve, WorkerSettings(**json.loads(sys.argv[1])), name='worker'))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, json.dumps(settings), stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            while b"are waited for" not in (line := await process.stderr.readline()):
                assert line, "the worker ended before it was told to"
            process.terminate()
            began = time.monotonic()
            rest, code_ = await process.stderr.read(), await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert code_ == 0, rest.decode()
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"miss_policy": "reroute", "eviction": "lru"}, ["eviction"]),
        ({"miss_policy": "reroute", "lookahead": True}, ["lookahead"]),
        ({"miss_policy": "load", "eviction": "demand"}, ["eviction demand"]),
        ({"miss_policy": "load", "eviction": "demand", "loader": "l:1"}, []),
        ({"miss_policy": "load", "start_timeout_seconds": 5}, ["start_timeout_seconds"]),
        ({"report_seconds": 1, "heartbeat_seconds": 1}, ["report_seconds", "heartbeat_seconds"]),
        ({"own_routing_tokens": 32}, ["own_routing_tokens"]),
        ({"own_routing_tokens": 32, "loader": "l:1"}, []),
        ({"step_tokens": 2, "max_concurrency": 8}, ["step_tokens"]),
        ({}, []),
    ],
    ids=str,
)
def test_a_setting_that_does_nothing_beside_the_others_says_so(given: dict[str, Any], named: list[str]) -> None:
    lines = settings_without_effect(WorkerSettings(model=Path("m"), **given))
    assert len(lines) == len(named)
    assert all(line.startswith(name) for line, name in zip(lines, named, strict=True))
