"""The scheduler's side of the workers' and the loader's contracts: messages in and out, nothing decided.

An answer is read as the bytes that the worker sent: the relay passes them on without parsing them.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from emoe.core.schedule.costs import FIRST_GUESS, StepCosts
from emoe.runtime.channels import open_channel
from emoe.runtime.parts import MAX_PROFILE_BYTES, Gathered
from emoe.runtime.telemetry import outgoing_metadata
from emoe.v1 import loader_pb2, worker_pb2
from emoe.v1.loader_pb2_grpc import LoaderServiceStub
from emoe.v1.worker_pb2_grpc import WorkerServiceStub

ByteStream = Any
"""grpc.aio.UnaryStreamCall of bytes; the class is generic in its stubs only."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportedWorker:
    """What admission needs of a WorkerState."""

    worker_id: str
    address: str
    ready: bool
    free_sequences: int
    num_sequences: int
    """Running and waiting inside the worker."""
    max_tokens_per_sequence: int
    num_tokens: int = 0
    """Of prompts and answers, ever: tells a later report from the same one again."""
    costs: StepCosts | None = None
    """None until the worker has measured."""
    coverage: Mapping[str, float] | None = dataclasses.field(default=None, compare=False)
    """Task -> the share of its demand that its residents cover. The loader's word, no part of the worker's own report;
    None where nothing was said of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskLoad:
    """What of one task runs and waits here."""

    task: str
    num_running: int
    num_waiting: int
    num_prompt_tokens: int
    num_expected_tokens: int
    num_waiting_tokens: int
    """Of both, those of waiting requests."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerTasks:
    """What runs on one worker, and what this scheduler sent it lately: task -> requests, the older the less."""

    worker_id: str
    running: tuple[TaskLoad, ...]
    recent: Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskReport:
    """`num_prompts`: admitted since this scheduler started."""

    loads: tuple[TaskLoad, ...]
    workers: tuple[WorkerTasks, ...]
    num_prompts: int

    def says_the_same(self, other: TaskReport | None) -> bool:
        """But for what fades with time alone."""
        return other is not None and self._without_recent() == other._without_recent()

    def _without_recent(self) -> tuple[object, ...]:
        return self.loads, self.num_prompts, tuple((worker.worker_id, worker.running) for worker in self.workers)


class WorkerClient:
    """One worker's channel; connects at the first call."""

    def __init__(self, address: str) -> None:
        self._channel = open_channel(address)
        self._stub = WorkerServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._generate: Any = self._channel.unary_stream(
            "/emoe.v1.WorkerService/Generate", request_serializer=None, response_deserializer=None
        )

    def generate(self, request: bytes, *, timeout_seconds: float) -> ByteStream:
        """A serialized GenerateRequest in, serialized GenerateResponses out; part of the caller's trace."""
        return self._generate(request, timeout=timeout_seconds, metadata=outgoing_metadata())

    async def get_state(self, *, timeout_seconds: float) -> ReportedWorker:
        response = await self._stub.GetState(worker_pb2.GetStateRequest(), timeout=timeout_seconds)
        return parse_worker(response.state)

    async def watch_health(self) -> AsyncIterator[bool]:
        """Whether it serves: now, and at every change until the connection breaks."""
        call: Any = self._health.Watch(health_pb2.HealthCheckRequest())
        try:
            async for answer in call:
                yield answer.status == health_pb2.HealthCheckResponse.SERVING
        finally:
            call.cancel()

    async def check_health(self, *, timeout_seconds: float) -> bool:
        answer = await self._health.Check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        await self._channel.close(None)


class LoaderClient:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        # The generated types know the call with an iterator only, not the one that is written to.
        self._stub: Any = LoaderServiceStub(channel)

    async def watch_workers(self) -> AsyncIterator[tuple[ReportedWorker, ...]]:
        """The whole list, now and after every change."""
        call = self._stub.WatchWorkers(loader_pb2.WatchWorkersRequest())
        try:
            async for message in call:
                coverage = {one.worker_id: dict(one.task_coverage) for one in message.coverage}
                yield tuple(parse_worker(state, coverage.get(state.worker_id)) for state in message.workers)
        finally:
            call.cancel()

    async def get_profile(self, *, timeout_seconds: float) -> bytes:
        """emoe-profile.json; empty where the model has none. InvalidRequestError when it is too large."""
        gathered = Gathered("the loader's profile", max_bytes=MAX_PROFILE_BYTES)
        call = self._stub.GetProfile(loader_pb2.GetProfileRequest(), timeout=timeout_seconds)
        try:
            async for message in call:
                gathered.add(message.data)
        finally:
            call.cancel()
        return gathered.whole()

    async def report_tasks(self, reports: AsyncIterator[loader_pb2.ReportTasksRequest]) -> None:
        """Until the loader ends the stream; `reports` is read no further then."""
        call = self._stub.ReportTasks()
        writer = asyncio.create_task(_write_all(call, reports))
        try:
            await call
        finally:
            writer.cancel()
            call.cancel()


async def _write_all(call: Any, reports: AsyncIterator[loader_pb2.ReportTasksRequest]) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # whoever awaits the call learns why
        async for report in reports:
            await call.write(report)


def parse_worker(state: loader_pb2.WorkerState, coverage: Mapping[str, float] | None = None) -> ReportedWorker:
    return ReportedWorker(
        worker_id=state.worker_id,
        address=state.address,
        ready=state.ready,
        free_sequences=state.free_sequences,
        num_sequences=state.num_running + state.num_waiting,
        max_tokens_per_sequence=state.max_tokens_per_sequence,
        num_tokens=state.counters.num_prompt_tokens + state.counters.num_completion_tokens,
        costs=_parse_costs(state.step_costs) if state.HasField("step_costs") else None,
        coverage=coverage,
    )


def report_to_proto(scheduler_id: str, report: TaskReport) -> loader_pb2.ReportTasksRequest:
    return loader_pb2.ReportTasksRequest(
        scheduler_id=scheduler_id,
        loads=_loads_to_proto(report.loads),
        num_prompts=report.num_prompts,
        workers=[
            loader_pb2.WorkerTasks(
                worker_id=worker.worker_id, running=_loads_to_proto(worker.running), recent=worker.recent
            )
            for worker in report.workers
        ],
    )


def _loads_to_proto(loads: tuple[TaskLoad, ...]) -> list[loader_pb2.TaskLoad]:
    return [loader_pb2.TaskLoad(**dataclasses.asdict(load)) for load in loads]


def _parse_costs(message: loader_pb2.StepCosts) -> StepCosts:
    """Another process measured them: what no step can take is taken as nothing."""
    seconds = {name: getattr(message, name) for name in _COST_FIELDS}
    return StepCosts(
        **{name: max(0.0, value) if math.isfinite(value) else 0.0 for name, value in seconds.items()},
        step_tokens=message.step_tokens or FIRST_GUESS.step_tokens,
    )


_COST_FIELDS = tuple(field.name for field in dataclasses.fields(StepCosts) if field.name.endswith("_seconds"))
