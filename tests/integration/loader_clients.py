"""What the tests of a loader that has its model open speak to it with: a stub, and a worker's half of Subscribe."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from loader_source import TIMEOUT_SECONDS

from emoe.core.experts import BoolGrid, ExpertGrid
from emoe.loader.main import serving
from emoe.loader.settings import LoaderSettings
from emoe.runtime.channels import open_channel
from emoe.runtime.grids import parse_grid, parse_set, set_to_proto
from emoe.runtime.lifecycle import ServiceHost
from emoe.v1 import loader_pb2 as pb
from emoe.v1 import loader_pb2_grpc as rpc


@contextlib.asynccontextmanager
async def loader(
    checkpoint: Path, **settings: Any
) -> AsyncIterator[tuple[rpc.LoaderServiceAsyncStub, pb.GetModelResponse]]:
    async with running(checkpoint, **settings) as host, client(host.address) as (stub, model):
        yield stub, model


@contextlib.asynccontextmanager
async def running(checkpoint: Path, **settings: Any) -> AsyncIterator[ServiceHost]:
    async with serving(LoaderSettings(model=checkpoint, **settings)) as host:
        yield host


@contextlib.asynccontextmanager
async def client(address: str) -> AsyncIterator[tuple[rpc.LoaderServiceAsyncStub, pb.GetModelResponse]]:
    async with open_channel(address) as channel:
        stub = rpc.LoaderServiceStub(channel)
        yield stub, await stub.GetModel(pb.GetModelRequest(), timeout=TIMEOUT_SECONDS, wait_for_ready=True)


class FakeWorker:
    """Speaks a worker's half of Subscribe, and applies a plan when told to."""

    def __init__(
        self, stub: rpc.LoaderServiceAsyncStub, model: pb.GetModelResponse, worker_id: str = "w", num_slots: int = 6
    ) -> None:
        self.call: Any = stub.Subscribe()  # type: ignore[call-arg]  # written to, not iterated
        self.grid: ExpertGrid = parse_grid(model.grid)
        self.state = pb.WorkerState(
            worker_id=worker_id,
            address="127.0.0.1:9",
            model=model.model,
            num_slots=num_slots,
            resident=set_to_proto(np.zeros(self.grid.shape, dtype=np.bool_)),
            miss_policy="reroute",
            ready=True,
            counters=pb.WorkerCounters(),
        )

    async def beat(self) -> None:
        await self.call.write(pb.SubscribeRequest(state=self.state))

    async def plan(self) -> pb.SubscribeResponse:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            response = await self.call.read()
        assert isinstance(response, pb.SubscribeResponse)
        return response

    async def apply(self, plan: pb.SubscribeResponse) -> None:
        self.state.resident.CopyFrom(plan.wanted)
        self.state.applied_epoch = plan.epoch
        await self.beat()

    def wanted(self, plan: pb.SubscribeResponse) -> BoolGrid:
        return parse_set(plan.wanted, self.grid)

    async def leave(self) -> None:
        await self.call.done_writing()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            assert not isinstance(await self.call.read(), pb.SubscribeResponse)


async def code_of(call: Any) -> grpc.StatusCode:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        return grpc.StatusCode(await call.code())


async def watch_until(call: Any, wish: Callable[[list[pb.WorkerState]], bool]) -> list[pb.WorkerState]:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            workers = list((await call.read()).workers)
            if wish(workers):
                return workers
