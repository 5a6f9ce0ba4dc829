"""The loader's gRPC edge: workers subscribe and pull, schedulers watch and report.

Parses every message once and hands typed values on; what is raised becomes a status in the runtime. Knows neither how
plans are made nor where bytes come from.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeVar

import grpc

from emoe.core.errors import InvalidRequestError, NotReadyError, QueueFullError
from emoe.core.experts import ExpertGrid
from emoe.loader.frames import frames
from emoe.loader.messages import (
    check_model,
    parse_name,
    parse_tasks,
    parse_worker,
    plan_to_proto,
    worker_to_proto,
)
from emoe.loader.pulls import pull
from emoe.loader.reads import ExpertReads
from emoe.loader.task_mix import TaskMix
from emoe.loader.workers import Member, Workers, WorkerState
from emoe.runtime.grids import ModelId, grid_to_proto, model_to_proto, parse_expert
from emoe.runtime.lifecycle import ServiceHost
from emoe.v1 import loader_pb2 as pb
from emoe.v1 import loader_pb2_grpc as rpc

SERVICE = "emoe.v1.LoaderService"
MAX_WATCHERS = 256
MAX_PULLS = 256
FIRST_MESSAGE_SECONDS = 10.0
WRITE_SECONDS = 30.0
_RETRY_AFTER_SECONDS = 1.0

Context = grpc.aio.ServicerContext[Any, Any]
_Message = TypeVar("_Message")


class LoaderService(rpc.LoaderServiceServicer):
    """Streaming methods write to their context rather than yield: a write can be given a time limit."""

    def __init__(
        self,
        *,
        model: ModelId,
        grid: ExpertGrid,
        path: str,
        workers: Workers,
        mix: TaskMix,
        reads: ExpertReads,
        heartbeat_timeout_seconds: float,
    ) -> None:
        self._model = model
        self._grid = grid
        self._path = path
        self._workers = workers
        self._mix = mix
        self._reads = reads
        self._heartbeat_timeout_seconds = heartbeat_timeout_seconds
        self._watchers = _Places("watchers", MAX_WATCHERS)
        self._pulls = _Places("pulls", MAX_PULLS)

    def register(self, host: ServiceHost) -> None:
        host.register(SERVICE, self._add_to, standing=["Subscribe", "WatchWorkers", "ReportTasks"])

    async def GetModel(self, _request: pb.GetModelRequest, _context: Context) -> pb.GetModelResponse:
        return pb.GetModelResponse(model=model_to_proto(self._model), grid=grid_to_proto(self._grid), path=self._path)

    async def Subscribe(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.SubscribeRequest], context: Context
    ) -> None:
        first = await _next(request_iterator, FIRST_MESSAGE_SECONDS, "a first heartbeat")
        if first is None:
            return
        with self._workers.joined(self._parse(first)) as member:
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(self._send_plans(member, context))
                await self._follow(member, request_iterator)
                sending.cancel()

    async def PullExperts(  # type: ignore[override]
        self, request: pb.PullExpertsRequest, context: Context
    ) -> None:
        """Writes serialized messages: see `frames` for what the stream holds."""
        check_model(request.model, self._model)
        if len(request.experts) > self._grid.num_experts_total:
            raise InvalidRequestError(
                f"{len(request.experts)} experts asked for; the model has {self._grid.num_experts_total}"
            )
        experts = [parse_expert(expert, self._grid) for expert in request.experts]
        with self._pulls.taken():
            async with contextlib.aclosing(pull(experts, self._reads)) as pulled:
                async for expert, loaded in pulled:
                    for frame in frames(expert, loaded):
                        await _write(context, frame)

    async def WatchWorkers(  # type: ignore[override]
        self, _request: pb.WatchWorkersRequest, context: Context
    ) -> None:
        """A watcher that reads slowly skips lists, and never the latest."""
        with self._watchers.taken():
            while True:
                seen = self._workers.news.count
                states = [worker_to_proto(state, model=self._model) for state in self._workers.states()]
                await context.write(pb.WatchWorkersResponse(workers=states))
                await self._workers.news.after(seen)

    async def ReportTasks(
        self, request_iterator: AsyncIterator[pb.ReportTasksRequest], _context: Context
    ) -> pb.ReportTasksResponse:
        first = await _next(request_iterator, FIRST_MESSAGE_SECONDS, "a first report")
        if first is not None:
            scheduler_id = parse_name(first.scheduler_id, "scheduler_id")
            with self._mix.joined(scheduler_id) as scheduler:
                self._mix.update(scheduler, parse_tasks(first))
                async for report in request_iterator:
                    if report.scheduler_id != scheduler_id:
                        raise InvalidRequestError(
                            f"this stream is scheduler {scheduler_id}'s, not {report.scheduler_id}'s"
                        )
                    self._mix.update(scheduler, parse_tasks(report))
        return pb.ReportTasksResponse()

    async def _follow(self, member: Member, heartbeats: AsyncIterator[pb.SubscribeRequest]) -> None:
        worker_id = member.state.worker_id
        what = f"a heartbeat of worker {worker_id}"
        while heartbeat := await _next(heartbeats, self._heartbeat_timeout_seconds, what):
            state = self._parse(heartbeat)
            if state.worker_id != worker_id:
                raise InvalidRequestError(f"this stream is worker {worker_id}'s, not {state.worker_id}'s")
            self._workers.update(member, state)

    async def _send_plans(self, member: Member, context: Context) -> None:
        epoch = 0
        while True:
            plan = await member.next_plan(after_epoch=epoch)
            await _write(context, plan_to_proto(plan, model=self._model))
            epoch = plan.epoch

    def _parse(self, message: pb.SubscribeRequest) -> WorkerState:
        return parse_worker(message.state, model=self._model, grid=self._grid)

    def _add_to(self, server: grpc.aio.Server) -> None:
        rpc.add_LoaderServiceServicer_to_server(self, server)
        # Over the generated handler, whose serializer would want message objects.
        raw = grpc.unary_stream_rpc_method_handler(
            self.PullExperts, request_deserializer=pb.PullExpertsRequest.FromString
        )
        server.add_registered_method_handlers(SERVICE, {"PullExperts": raw})  # type: ignore[attr-defined]


class _Places:
    """So many streams of a kind, and no more."""

    def __init__(self, what: str, limit: int) -> None:
        self._what = what
        self._limit = limit
        self._num_taken = 0

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        if self._num_taken >= self._limit:
            raise QueueFullError(
                f"{self._limit} {self._what} are open already; end some or come back",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        self._num_taken += 1
        try:
            yield
        finally:
            self._num_taken -= 1


async def _next(messages: AsyncIterator[_Message], seconds: float, what: str) -> _Message | None:
    """None when the client has ended its half of the stream."""
    try:
        async with asyncio.timeout(seconds):
            return await anext(messages, None)
    except TimeoutError:
        raise NotReadyError(f"{what} did not come within {seconds:g} s; subscribe again") from None


async def _write(context: Context, message: Any) -> None:
    """A reader that stops reading must not hold what others wait for."""
    try:
        async with asyncio.timeout(WRITE_SECONDS):
            await context.write(message)
    except TimeoutError:
        raise NotReadyError(f"the peer has read nothing for {WRITE_SECONDS:g} s; this stream ends") from None
