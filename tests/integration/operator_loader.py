"""A loader's two watch streams, served for real; what they say is set by the test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc

from emoe.v1 import loader_pb2 as pb
from emoe.v1 import loader_pb2_grpc, residency_pb2


def ready_model() -> pb.WatchModelResponse:
    rule = residency_pb2.RoutingRule(num_experts=32, top_k=2)
    grid = residency_pb2.ExpertGrid(num_layers=2, moe_layers=[0, 1], rule=rule, expert_bytes=1 << 20)
    model = residency_pb2.ModelId(digest="xxh3:1234", family="qwen3_moe")
    geometry = pb.ModelGeometry(model=model, grid=grid, base_bytes=1 << 22, kv_bytes_per_token=1024, max_context=512)
    return pb.WatchModelResponse(
        phase=pb.MODEL_PHASE_READY, revision="abc", num_bytes_done=5, num_bytes_total=5, geometry=geometry
    )


def fetching_model(num_bytes_done: int) -> pb.WatchModelResponse:
    return pb.WatchModelResponse(
        phase=pb.MODEL_PHASE_FETCHING, revision="abc", num_bytes_done=num_bytes_done, num_bytes_total=1 << 30
    )


def worker(name: str, *, num_resident: int, num_hits: int = 0, num_choices: int = 0) -> pb.WorkerState:
    bits = ((1 << num_resident) - 1).to_bytes(8, "little")
    return pb.WorkerState(
        worker_id=name,
        ready=True,
        slot_bytes=1 << 20,
        resident=residency_pb2.ExpertSet(bits=bits),
        counters=pb.WorkerCounters(num_expert_hits=num_hits, num_expert_choices=num_choices),
    )


class ToldLoader(loader_pb2_grpc.LoaderServiceServicer):
    def __init__(self) -> None:
        self.address = ""
        self.num_streams = 0
        self._changed = asyncio.Condition()
        self._model: pb.WatchModelResponse | None = None
        self._workers = pb.WatchWorkersResponse()

    async def tell(self, model: pb.WatchModelResponse, *workers: pb.WorkerState) -> None:
        async with self._changed:
            self._model, self._workers = model, pb.WatchWorkersResponse(workers=workers)
            self._changed.notify_all()

    async def WatchModel(self, request: Any, context: Any) -> AsyncIterator[pb.WatchModelResponse]:  # type: ignore[override]
        async for _ in self._changes():
            if self._model is not None:
                yield self._model

    async def WatchWorkers(self, request: Any, context: Any) -> AsyncIterator[pb.WatchWorkersResponse]:  # type: ignore[override]
        async for _ in self._changes():
            yield self._workers

    async def _changes(self) -> AsyncIterator[None]:
        self.num_streams += 1
        try:
            while True:
                yield
                async with self._changed:
                    await self._changed.wait()
        finally:
            self.num_streams -= 1


@contextlib.asynccontextmanager
async def told_loader(address: str = "127.0.0.1:0") -> AsyncIterator[ToldLoader]:
    loader, server = ToldLoader(), grpc.aio.server()
    loader_pb2_grpc.add_LoaderServiceServicer_to_server(loader, server)
    port = server.add_insecure_port(address)
    loader.address = f"127.0.0.1:{port}"
    await server.start()
    try:
        yield loader
    finally:
        await server.stop(None)
