"""A real loader plans for a real worker's running requests: where tasks say nothing, their own routing decides."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from support.checkpoints import save_with_tokenizer
from support.workers import running_worker, stub_of

from emoe.core.experts import BoolGrid, CountGrid, ExpertGrid
from emoe.loader.main import serving
from emoe.loader.settings import LoaderSettings
from emoe.runtime.channels import open_channel
from emoe.runtime.grids import parse_counts, parse_set
from emoe.store.store import ExpertStore
from emoe.v1 import generation_pb2 as pb
from emoe.v1 import loader_pb2, loader_pb2_grpc, predictor_pb2, predictor_pb2_grpc

WAIT_SECONDS = 30.0
PROMPT = "zzzzzzzz" * 4
NUM_TOKENS = 80


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_with_tokenizer("qwen3_moe", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def grid(folder: Path) -> ExpertGrid:
    with ExpertStore.open(folder) as store:
        return store.grid


class Counter(predictor_pb2_grpc.PredictorServiceServicer):
    """Adds up what the worker's requests routed; the loader has no predictor to ask."""

    def __init__(self, grid: ExpertGrid) -> None:
        self.grid = grid
        self.counts: CountGrid = np.zeros(grid.shape, dtype=np.int64)

    async def ReportRouting(self, request_iterator: Any, context: Any) -> predictor_pb2.ReportRoutingResponse:
        async for report in request_iterator:
            self.counts += parse_counts(report.counts, self.grid)
        return predictor_pb2.ReportRoutingResponse()

    @property
    def is_complete(self) -> bool:
        """Once the prompt and all answer tokens but the last, which nothing follows, were counted."""
        return int(self.counts.sum()) >= (len(PROMPT) + NUM_TOKENS) * len(self.grid.moe_layers) * self.grid.rule.top_k

    def covered_by(self, resident: BoolGrid) -> float:
        return float(self.counts[resident].sum() / self.counts.sum())


@contextlib.asynccontextmanager
async def counting(grid: ExpertGrid) -> AsyncIterator[tuple[Counter, str]]:
    server, counter = grpc.aio.server(), Counter(grid)
    predictor_pb2_grpc.add_PredictorServiceServicer_to_server(counter, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield counter, f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def ask(worker: grpc.aio.Channel) -> None:
    sampling = pb.Sampling(max_tokens=NUM_TOKENS)
    async for _ in stub_of(worker).Generate(pb.GenerateRequest(text=PROMPT, sampling=sampling), timeout=WAIT_SECONDS):
        pass


async def keep_asking(worker: grpc.aio.Channel) -> None:
    while True:
        await ask(worker)


@contextlib.asynccontextmanager
async def served(
    folder: Path, tmp_path: Path, grid: ExpertGrid, **settings: Any
) -> AsyncIterator[tuple[Any, Any, Any]]:
    """Worker, the loader's worker list, and what was routed: half of the experts fit, and tasks say nothing."""
    async with (
        counting(grid) as (counter, predictor),
        serving(LoaderSettings(model=folder, drain_seconds=0)) as host,
        open_channel(host.address) as loader,
        running_worker(
            folder,
            tmp_path,
            **{"loader": host.address, "predictor": predictor, "expert_memory": "50%", "max_context": 128},
            **{"report_seconds": 0.05, "heartbeat_seconds": 0.2} | settings,
        ) as worker,
    ):
        watch = loader_pb2_grpc.LoaderServiceStub(loader).WatchWorkers(loader_pb2.WatchWorkersRequest())
        yield worker, watch, counter
        watch.cancel()


async def state_where(watch: Any, grid: ExpertGrid, wish: Any) -> tuple[loader_pb2.WorkerState, BoolGrid]:
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            for state in (await watch.read()).workers:
                if wish(state):
                    return state, parse_set(state.resident, grid)


async def test_the_plan_follows_the_routing_of_what_runs(folder: Path, tmp_path: Path, grid: ExpertGrid) -> None:
    async with served(folder, tmp_path, grid) as (worker, watch, counter):
        _, before = await state_where(watch, grid, lambda state: state.ready)
        # One after the other: so small a model would be done with one before its worker's next heartbeat.
        asking = asyncio.create_task(keep_asking(worker))
        state, after = await state_where(watch, grid, lambda state: counter.is_complete and state.applied_epoch >= 2)
        asking.cancel()
    best = np.sort(counter.counts.reshape(-1))[-state.num_slots :].sum() / counter.counts.sum()
    assert counter.covered_by(after) > 0.9 * best > counter.covered_by(before) + 0.05


async def test_a_worker_that_foretells_nothing_is_planned_for_by_tasks_alone(
    folder: Path, tmp_path: Path, grid: ExpertGrid
) -> None:
    async with served(folder, tmp_path, grid, own_routing_tokens=0) as (worker, watch, counter):
        _, before = await state_where(watch, grid, lambda state: state.ready)
        await ask(worker)
        state, after = await state_where(watch, grid, lambda state: counter.is_complete and not state.num_running)
    assert state.applied_epoch == 1
    assert (before == after).all()
