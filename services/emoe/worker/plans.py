"""The worker's subscription to the loader: heartbeats up, residency plans down.

While the loader is away the worker keeps its residents and tries again; the first heartbeat of a new stream registers
it anew. A heartbeat goes at once when there is something to plan for: a prompt has run, or a plan is applied.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from emoe.core.errors import EmoeError, NotReadyError
from emoe.core.experts import ExpertGrid
from emoe.runtime.cancellation import this_task_is_cancelled
from emoe.runtime.channels import open_channel
from emoe.runtime.grids import ModelId, parse_demand, parse_model, parse_set
from emoe.runtime.reconnect import keep_connected
from emoe.v1 import loader_pb2 as pb
from emoe.v1 import loader_pb2_grpc
from emoe.worker.runner import EngineRunner
from emoe.worker.running_demand import RunningDemand, RunningForecast, look
from emoe.worker.state import running_to_proto

log = logging.getLogger(__name__)

SHORTEST_HEARTBEAT_SECONDS = 0.1
"""Between two heartbeats, whatever there is to tell."""
LOOK_SECONDS = 1.0
"""How long a forecast waits for the end of a step before the last one is told again."""


class PlanSubscription:
    """`heartbeat` gives the state to send, every `heartbeat_seconds`; `forecast` tells of the running requests."""

    def __init__(
        self,
        *,
        loader: str,
        model: ModelId,
        grid: ExpertGrid,
        runner: EngineRunner,
        heartbeat: Callable[[], Awaitable[pb.WorkerState]],
        heartbeat_seconds: float,
        forecast: RunningForecast | None = None,
    ) -> None:
        self._loader = loader
        self._model = model
        self._grid = grid
        self._runner = runner
        self._heartbeat = heartbeat
        self._heartbeat_seconds = heartbeat_seconds
        self._forecast = forecast

    async def run(self) -> None:
        """Until cancelled."""
        async with open_channel(self._loader) as channel:
            stub = loader_pb2_grpc.LoaderServiceStub(channel)
            await keep_connected(f"the loader at {self._loader}", lambda: self._follow(stub))

    async def _follow(self, stub: loader_pb2_grpc.LoaderServiceAsyncStub) -> None:
        """One stream, until it ends."""
        call = stub.Subscribe(self._heartbeats())
        try:
            async for response in call:
                await self._apply(response)
        except asyncio.CancelledError:
            # gRPC ends the call like this when there is no state to send; only our own end may pass.
            if this_task_is_cancelled():
                raise
        finally:
            call.cancel()

    async def _heartbeats(self) -> AsyncIterator[pb.SubscribeRequest]:
        told_version = -1
        while True:
            self._runner.news.clear()
            running = await self._foretell()
            state = await self._heartbeat()
            if running is not None:
                state.running.CopyFrom(running_to_proto(running, told_version=told_version))
                told_version = running.version
            yield pb.SubscribeRequest(state=state)
            await self._until_due()

    async def _until_due(self) -> None:
        shortest = min(SHORTEST_HEARTBEAT_SECONDS, self._heartbeat_seconds)
        await asyncio.sleep(shortest)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._runner.news.wait(), self._heartbeat_seconds - shortest)

    async def _foretell(self) -> RunningDemand | None:
        """As last known while a step takes long."""
        if self._forecast is None:
            return None
        try:
            running = await self._runner.ask(look, timeout_seconds=LOOK_SECONDS)
        except NotReadyError:
            return self._forecast.last
        # With a large model's grid it takes some milliseconds: answers stream meanwhile.
        return await asyncio.to_thread(self._forecast.update, running)

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
