"""A loader that is started from a source, and what its WatchModel says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from emoe.loader.main import serving
from emoe.loader.settings import LoaderSettings
from emoe.runtime.channels import open_channel
from emoe.v1 import loader_pb2 as pb
from emoe.v1 import loader_pb2_grpc as rpc

TIMEOUT_SECONDS = 30.0


class Watched:
    """A loader and the messages of its WatchModel so far."""

    def __init__(self, channel: grpc.aio.Channel, *, health_address: str = "") -> None:
        self.stub: Any = rpc.LoaderServiceStub(channel)
        self.health_address = health_address
        self.seen: list[pb.WatchModelResponse] = []
        self._call: Any = self.stub.WatchModel(pb.WatchModelRequest(), wait_for_ready=True)

    async def until(self, phase: str) -> pb.WatchModelResponse:
        wanted = pb.ModelPhase.Value(f"MODEL_PHASE_{phase}")
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not self.seen or self.seen[-1].phase != wanted:
                self.seen.append(await self._call.read())
        return self.seen[-1]

    async def next(self) -> pb.WatchModelResponse:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            self.seen.append(await self._call.read())
        return self.seen[-1]

    async def ready_folder(self) -> Path:
        await self.until("READY")
        return Path((await self.stub.GetModel(pb.GetModelRequest(), timeout=TIMEOUT_SECONDS)).path)

    async def failure(self) -> pb.ModelFailure:
        return (await self.until("FAILED")).failure


@contextlib.asynccontextmanager
async def loading(source: str, cache: Path, **settings: Any) -> AsyncIterator[Watched]:
    pace = {"fetch_retry_seconds": 0.05, "max_fetch_retry_seconds": 0.2, "permanent_retry_seconds": 0.2}
    merged = LoaderSettings(source=source, model_cache=cache, drain_seconds=0, **{**pace, **settings})
    async with serving(merged) as host, open_channel(host.address) as channel:
        yield Watched(channel, health_address=host.health_address)
