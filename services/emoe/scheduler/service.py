"""The front door's RPCs: parse at the edge, wait for a place, relay one worker's answer.

`Generate` takes and gives bytes, so that its answers pass unparsed; see `relay`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import time
import uuid
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from emoe.core.errors import InvalidRequestError, NotReadyError
from emoe.core.schedule.decisions import DecisionLog
from emoe.core.schedule.request import QueuedRequest
from emoe.core.task_naming import NamedBy, TaskNamer
from emoe.runtime.channels import remaining_seconds
from emoe.runtime.errors import retry_after_seconds, rich_details
from emoe.runtime.messages import ParsedRequest, parse_request
from emoe.scheduler.dispatch import Dispatcher, Place, Seat
from emoe.scheduler.lengths import LengthEstimator
from emoe.scheduler.list_decisions import list_decisions
from emoe.scheduler.naming import name_task
from emoe.scheduler.relay import WorkerFullError, WorkerLostError, front_fields, relay
from emoe.scheduler.settings import SchedulerSettings
from emoe.scheduler.span import describe_request, describe_seat
from emoe.scheduler.worker import Worker
from emoe.scheduler.workers import MAX_FULL_SECONDS, WorkerPool
from emoe.v1 import generation_pb2, scheduler_pb2

SERVICE = "emoe.v1.SchedulerService"
MAX_ATTEMPTS = 2
MAX_REFUSALS = 3
"""So often a request is queued again because its worker was full."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Intake:
    """A request that was let in: parsed, and as the worker will get it."""

    request: ParsedRequest
    queued: QueuedRequest
    payload: bytes
    request_id: str
    named_by: NamedBy
    """Who said which task it is."""
    ends_seconds: float
    """On the event loop's clock."""


class SchedulerServicer:
    def __init__(
        self,
        settings: SchedulerSettings,
        *,
        dispatcher: Dispatcher,
        pool: WorkerPool,
        lengths: LengthEstimator,
        decisions: DecisionLog,
        namer: TaskNamer | None = None,
    ) -> None:
        """`namer` names the task of requests that come without; None leaves them unknown."""
        self._settings = settings
        self._namer = namer
        self._tasks = settings.tasks
        self._dispatcher = dispatcher
        self._pool = pool
        self._lengths = lengths
        self._decisions = decisions

    def add_to(self, server: grpc.aio.Server) -> None:
        handlers = {
            "Generate": grpc.unary_stream_rpc_method_handler(self.generate),
            "GetStatus": grpc.unary_unary_rpc_method_handler(
                self.get_status,
                request_deserializer=scheduler_pb2.GetSchedulerStatusRequest.FromString,
                response_serializer=scheduler_pb2.GetSchedulerStatusResponse.SerializeToString,
            ),
            "ListDecisions": grpc.unary_unary_rpc_method_handler(
                self.list_decisions,
                request_deserializer=scheduler_pb2.ListDecisionsRequest.FromString,
                response_serializer=scheduler_pb2.ListDecisionsResponse.SerializeToString,
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def generate(self, data: bytes, context: Any) -> None:
        intake = self._take_in(data, context)
        describe_request(intake.queued, policy=self._settings.policy, named_by=intake.named_by)
        limit = asyncio.timeout_at(intake.ends_seconds)
        try:
            with self._dispatcher.place(intake.queued) as place:
                async with limit:
                    await self._answer(intake, place, context)
        except TimeoutError:
            if not limit.expired():
                raise
            text = f"request {intake.request_id} was not answered in full before its deadline"
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, text)
        except grpc.aio.AioRpcError as error:
            # The worker's verdict on the request itself: the client gets it as it is.
            await context.abort(error.code(), error.details() or "", rich_details(error))

    async def get_status(self, _request: scheduler_pb2.GetSchedulerStatusRequest, _context: Any) -> Any:
        return scheduler_pb2.GetSchedulerStatusResponse(
            num_waiting=self._dispatcher.num_waiting,
            num_running=self._dispatcher.num_running,
            tasks=sorted(self._tasks),
            num_workers=self._pool.num_usable,
            policy=self._settings.policy,
            num_admitted=self._dispatcher.num_prompts,
            num_refused=self._dispatcher.num_refused,
            num_worker_refusals=self._pool.num_refusals,
            max_queued_requests=self._settings.max_queued_requests,
            max_queued_bytes=self._settings.max_queued_bytes,
        )

    async def list_decisions(self, request: scheduler_pb2.ListDecisionsRequest, _context: Any) -> Any:
        return list_decisions(self._decisions, request, now_seconds=self._dispatcher.clock(), unix_seconds=time.time())

    def _take_in(self, data: bytes, context: Any) -> _Intake:
        request, message = self._parse(data)
        named_by: NamedBy = "client"
        if not message.task:
            named = name_task(request.prompt, self._namer)
            request, named_by = dataclasses.replace(request, task=named.task), named.by
        settings = self._settings
        has_deadline = context.time_remaining() is not None
        seconds = remaining_seconds(
            context, settings.max_deadline_seconds if has_deadline else settings.default_deadline_seconds
        )
        message.request_id = request.request_id or uuid.uuid4().hex
        message.task = request.task
        slo = settings.fill_slo(request.task, request.slo)
        if slo != request.slo:
            message.slo.CopyFrom(generation_pb2.Slo(**dataclasses.asdict(slo)))
        queued = QueuedRequest(
            request_id=message.request_id,
            task=request.task,
            tenant=request.tenant,
            arrived_seconds=self._dispatcher.clock(),
            ttft_seconds=slo.ttft_seconds,
            tpot_seconds=slo.tpot_seconds,
            end_to_end_seconds=slo.end_to_end_seconds,
            size_bytes=len(data),
            num_prompt_tokens=self._lengths.prompt_tokens(request),
            num_expected_tokens=self._lengths.answer_tokens(request),
            max_tokens=request.sampling.max_tokens,
            expected_rest=functools.partial(self._lengths.expected_remaining, request),
        )
        return _Intake(
            request=request,
            queued=queued,
            payload=message.SerializeToString(),
            request_id=message.request_id,
            named_by=named_by,
            ends_seconds=asyncio.get_running_loop().time() + seconds,
        )

    def _parse(self, data: bytes) -> tuple[ParsedRequest, generation_pb2.GenerateRequest]:
        limit = self._settings.max_request_bytes
        if len(data) > limit:
            raise InvalidRequestError(f"the request has {len(data)} bytes; this scheduler takes at most {limit}")
        try:
            message = generation_pb2.GenerateRequest.FromString(data)
        except DecodeError as error:
            raise InvalidRequestError(
                "the request is not an emoe.v1.GenerateRequest; check the client's protos"
            ) from error
        return parse_request(message, known_tasks=self._tasks), message

    async def _answer(self, intake: _Intake, place: Place, context: Any) -> None:
        """On one worker, on a second one if the first dies without a word, and from the queue again if one is full."""
        num_lost = num_refused = 0
        while True:
            seat = await place.seated()
            describe_seat(seat, waited_seconds=self._waited_seconds(intake), num_refusals=num_refused)
            try:
                await self._relay(intake, place, seat, context, may_move=num_lost < MAX_ATTEMPTS - 1)
                return
            except WorkerLostError as lost:
                num_lost += 1
                self._lose(seat.worker, lost, is_last=num_lost == MAX_ATTEMPTS)
                place.requeue(str(lost))
            except WorkerFullError as full:
                num_refused += 1
                self._pool.refused(seat.worker, retry_seconds=retry_after_seconds(full.error) or MAX_FULL_SECONDS)
                if num_refused > MAX_REFUSALS:
                    raise full.error from full
                place.requeue(str(full))

    def _lose(self, worker: Worker, lost: WorkerLostError, *, is_last: bool) -> None:
        """NotReadyError unless another worker may still answer as if nothing had been."""
        self._pool.suspect(worker)
        if lost.num_messages:
            raise NotReadyError(f"{lost} after {lost.num_messages} messages; ask again from the start") from lost
        if is_last or not self._pool.num_usable:
            raise NotReadyError(f"{lost} before the first token; ask again later") from lost

    async def _relay(self, intake: _Intake, place: Place, seat: Seat, context: Any, *, may_move: bool) -> None:
        fields = front_fields(
            request_id=intake.request_id,
            task=intake.request.task,
            worker_id=seat.worker.worker_id,
            queue_seconds=self._waited_seconds(intake),
        )
        remaining = max(0.0, intake.ends_seconds - asyncio.get_running_loop().time())
        call = seat.worker.client.generate(intake.payload, timeout_seconds=remaining)
        usage = await relay(
            seat.worker, call, context.write, front_fields=fields, may_move=may_move, count_tokens=place.wrote
        )
        if usage is not None:
            self._lengths.observe(intake.request, usage)

    def _waited_seconds(self, intake: _Intake) -> float:
        return self._dispatcher.clock() - intake.queued.arrived_seconds
