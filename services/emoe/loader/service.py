"""The loader's gRPC edge: workers subscribe and pull, schedulers watch and report, everybody asks for the model.

Parses every message once and hands typed values on; what is raised becomes a status in the runtime. Knows neither how
plans are made nor where bytes come from.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc

from emoe.core.errors import InvalidRequestError, NotReadyError
from emoe.loader.bulk import BulkDoor
from emoe.loader.coverage import Coverage
from emoe.loader.frames import frames
from emoe.loader.messages import (
    check_model,
    coverage_to_proto,
    file_to_proto,
    parse_name,
    parse_tasks,
    parse_worker,
    piece_to_proto,
    plan_to_proto,
    progress_to_proto,
    worker_to_proto,
)
from emoe.loader.opened import OpenModel
from emoe.loader.progress import Progress
from emoe.loader.pulls import pull
from emoe.loader.streams import Context, Places, next_message, write
from emoe.loader.task_mix import TaskMix
from emoe.loader.tickets import TICKET_SECONDS
from emoe.loader.workers import Member, Workers, WorkerState
from emoe.runtime.grids import grid_to_proto, model_to_proto, parse_expert
from emoe.runtime.lifecycle import ServiceHost
from emoe.runtime.parts import parts
from emoe.v1 import loader_pb2 as pb
from emoe.v1 import loader_pb2_grpc as rpc

SERVICE = "emoe.v1.LoaderService"
MAX_WATCHERS = 256
MAX_PULLS = 256
MAX_FILE_READS = 64
MAX_PROFILE_READS = 64
FIRST_MESSAGE_SECONDS = 10.0
LOOK_SECONDS = 0.3
"""Between two looks at bytes that are on their way."""


class LoaderService(rpc.LoaderServiceServicer):
    """Streaming methods write to their context rather than yield: a write can be given a time limit.

    All but WatchModel say NotReady until `model` is set."""

    model: OpenModel | None = None
    bulk: BulkDoor | None = None

    def __init__(
        self,
        *,
        progress: Progress,
        workers: Workers,
        mix: TaskMix,
        coverage: Coverage,
        heartbeat_timeout_seconds: float,
    ) -> None:
        self._progress = progress
        self._workers = workers
        self._mix = mix
        self._coverage = coverage
        self._heartbeat_timeout_seconds = heartbeat_timeout_seconds
        self._watchers = Places("watchers", MAX_WATCHERS)
        self._pulls = Places("pulls", MAX_PULLS)
        self._file_reads = Places("file reads", MAX_FILE_READS)
        self._profile_reads = Places("profile reads", MAX_PROFILE_READS)

    def register(self, host: ServiceHost) -> None:
        standing = ["WatchModel", "Subscribe", "WatchWorkers", "ReportTasks"]
        host.register(SERVICE, self._add_to, standing=standing)

    async def GetModel(self, _request: pb.GetModelRequest, _context: Context) -> pb.GetModelResponse:
        model = self._opened()
        return pb.GetModelResponse(model=model_to_proto(model.id), grid=grid_to_proto(model.grid), path=model.path)

    async def WatchModel(  # type: ignore[override]
        self, _request: pb.WatchModelRequest, context: Context
    ) -> None:
        last = None
        with self._watchers.taken():
            while True:
                seen = self._progress.news.count
                now = progress_to_proto(self._progress, self.model)
                if now != last:
                    await write(context, now)
                last = now
                await self._progress.news.after(
                    seen, timeout_seconds=LOOK_SECONDS if self._progress.is_moving else None
                )

    async def ListFiles(self, request: pb.ListFilesRequest, _context: Context) -> pb.ListFilesResponse:
        check_model(request.model, self._opened().id)
        return pb.ListFilesResponse(files=[file_to_proto(file) for file in self._opened().base_files.files])

    async def ReadFile(  # type: ignore[override]
        self, request: pb.ReadFileRequest, context: Context
    ) -> None:
        check_model(request.model, self._opened().id)
        with self._file_reads.taken():
            async with contextlib.aclosing(self._opened().base_files.read(request.name)) as pieces:
                async for piece in pieces:
                    await write(context, piece_to_proto(piece))

    async def GetProfile(  # type: ignore[override]
        self, _request: pb.GetProfileRequest, context: Context
    ) -> None:
        profile = self._opened().profile
        with self._profile_reads.taken():
            for part in parts(profile.profile if profile else b""):
                await write(context, pb.GetProfileResponse(data=part))

    async def Subscribe(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.SubscribeRequest], context: Context
    ) -> None:
        self._opened()
        first = await next_message(request_iterator, FIRST_MESSAGE_SECONDS, "a first heartbeat")
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
        check_model(request.model, self._opened().id)
        if len(request.experts) > self._opened().grid.num_experts_total:
            raise InvalidRequestError(
                f"{len(request.experts)} experts asked for; the model has {self._opened().grid.num_experts_total}"
            )
        experts = [parse_expert(expert, self._opened().grid) for expert in request.experts]
        with self._pulls.taken():
            async with contextlib.aclosing(pull(experts, self._opened().reads)) as pulled:
                async for expert, loaded in pulled:
                    for frame in frames(expert, loaded):
                        await write(context, frame)

    async def OpenBulk(self, request: pb.OpenBulkRequest, _context: Context) -> pb.OpenBulkResponse:
        check_model(request.model, self._opened().id)
        if self.bulk is None:
            return pb.OpenBulkResponse()
        return pb.OpenBulkResponse(
            port=self.bulk.port,
            ticket=self.bulk.tickets.issue(),
            ticket_seconds=TICKET_SECONDS,
            socket_path=self.bulk.socket_path,
        )

    async def WatchWorkers(  # type: ignore[override]
        self, _request: pb.WatchWorkersRequest, context: Context
    ) -> None:
        """A watcher that reads slowly skips lists, and never the latest."""
        model = self._opened().id
        with self._watchers.taken():
            while True:
                seen = self._workers.news.count
                states = self._workers.states()
                self._coverage.refresh(states)
                await context.write(
                    pb.WatchWorkersResponse(
                        workers=[worker_to_proto(state, model=model) for state in states],
                        coverage=coverage_to_proto(self._coverage.told),
                    )
                )
                await self._workers.news.after(seen)

    async def ReportTasks(
        self, request_iterator: AsyncIterator[pb.ReportTasksRequest], _context: Context
    ) -> pb.ReportTasksResponse:
        self._opened()
        first = await next_message(request_iterator, FIRST_MESSAGE_SECONDS, "a first report")
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

    def _opened(self) -> OpenModel:
        if self.model is None:
            raise NotReadyError("the model is not open yet; WatchModel says how far it is")
        return self.model

    async def _follow(self, member: Member, heartbeats: AsyncIterator[pb.SubscribeRequest]) -> None:
        worker_id = member.state.worker_id
        what = f"a heartbeat of worker {worker_id}"
        while heartbeat := await next_message(heartbeats, self._heartbeat_timeout_seconds, what):
            state = self._parse(heartbeat)
            if state.worker_id != worker_id:
                raise InvalidRequestError(f"this stream is worker {worker_id}'s, not {state.worker_id}'s")
            self._workers.update(member, state)

    async def _send_plans(self, member: Member, context: Context) -> None:
        epoch = 0
        while True:
            plan = await member.next_plan(after_epoch=epoch)
            await write(context, plan_to_proto(plan, model=self._opened().id))
            epoch = plan.epoch

    def _parse(self, message: pb.SubscribeRequest) -> WorkerState:
        return parse_worker(message.state, model=self._opened().id, grid=self._opened().grid)

    def _add_to(self, server: grpc.aio.Server) -> None:
        rpc.add_LoaderServiceServicer_to_server(self, server)
        # Over the generated handler, whose serializer would want message objects.
        raw = grpc.unary_stream_rpc_method_handler(
            self.PullExperts, request_deserializer=pb.PullExpertsRequest.FromString
        )
        server.add_registered_method_handlers(SERVICE, {"PullExperts": raw})  # type: ignore[attr-defined]
