"""The worker's subscription to the loader: heartbeats up, residency plans down.

While the loader is away the worker keeps its residents and tries again; the first heartbeat of a new stream registers
it anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc

from emoe.core.errors import EmoeError
from emoe.core.experts import ExpertGrid
from emoe.runtime.channels import open_channel
from emoe.runtime.grids import ModelId, parse_demand, parse_model, parse_set
from emoe.v1 import loader_pb2 as pb
from emoe.v1 import loader_pb2_grpc
from emoe.worker.runner import EngineRunner

log = logging.getLogger(__name__)

MIN_RETRY_SECONDS = 0.2
MAX_RETRY_SECONDS = 5.0


class PlanSubscription:
    """`heartbeat` gives the state to send; `changed` is set when one should go out before its time."""

    def __init__(
        self,
        *,
        loader: str,
        model: ModelId,
        grid: ExpertGrid,
        runner: EngineRunner,
        heartbeat: Callable[[], Awaitable[pb.WorkerState]],
        heartbeat_seconds: float,
    ) -> None:
        self.changed = asyncio.Event()
        self._loader = loader
        self._model = model
        self._grid = grid
        self._runner = runner
        self._heartbeat = heartbeat
        self._heartbeat_seconds = heartbeat_seconds

    async def run(self) -> None:
        """Until cancelled."""
        retry_seconds = MIN_RETRY_SECONDS
        async with open_channel(self._loader) as channel:
            stub = loader_pb2_grpc.LoaderServiceStub(channel)
            while True:
                try:
                    async for response in stub.Subscribe(self._heartbeats()):
                        retry_seconds = MIN_RETRY_SECONDS
                        await self._apply(response)
                except grpc.aio.AioRpcError as error:
                    log.warning("the loader at %s is away (%s); residents stay", self._loader, error.details())
                await asyncio.sleep(retry_seconds)
                retry_seconds = min(2 * retry_seconds, MAX_RETRY_SECONDS)

    async def _heartbeats(self) -> AsyncIterator[pb.SubscribeRequest]:
        while True:
            self.changed.clear()
            yield pb.SubscribeRequest(state=await self._heartbeat())
            try:
                await asyncio.wait_for(self.changed.wait(), self._heartbeat_seconds)
            except TimeoutError:
                continue

    async def _apply(self, response: pb.SubscribeResponse) -> None:
        """A plan that does not fit is refused and said so; the last one stands."""
        try:
            if parse_model(response.model).digest != self._model.digest:
                log.error("plan %d is for another model; refused", response.epoch)
                return
            wanted = parse_set(response.wanted, self._grid)
            demand = parse_demand(response.demand, self._grid) if response.demand.values else None
            await self._runner.ask(
                lambda engine: engine.residency.set_plan(wanted, epoch=response.epoch, demand=demand)
            )
        except EmoeError as error:
            log.warning("plan %d refused: %s", response.epoch, error)
