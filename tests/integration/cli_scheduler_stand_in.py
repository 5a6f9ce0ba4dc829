"""A real SchedulerService on a port whose answers the test chooses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from emoe.runtime.lifecycle import service_host
from emoe.runtime.settings import ServiceSettings
from emoe.v1 import generation_pb2, scheduler_pb2, scheduler_pb2_grpc

FIRST = generation_pb2.GenerateResponse(
    text="Good ", token_ids=[5], request_id="r1", task="code", worker_id="w1", queue_seconds=0.25
)
LAST = generation_pb2.GenerateResponse(
    text="day.",
    token_ids=[6, 7],
    finish_reason=generation_pb2.FINISH_REASON_STOP,
    usage=generation_pb2.Usage(num_prompt_tokens=4, num_completion_tokens=3, num_expert_hits=6, num_expert_choices=8),
)


class SchedulerStandIn(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Streams `answer`, then raises `failure` if there is one, or `hangs`."""

    def __init__(
        self,
        answer: Sequence[generation_pb2.GenerateResponse] = (FIRST, LAST),
        *,
        failure: Exception | None = None,
        hangs: bool = False,
    ) -> None:
        self._answer = answer
        self._failure = failure
        self._hangs = hangs
        self.cancelled = asyncio.Event()
        self.requests: list[generation_pb2.GenerateRequest] = []

    async def Generate(  # type: ignore[override]
        self, request: generation_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        self.requests.append(request)
        for response in self._answer:
            yield response
        if self._failure:
            raise self._failure
        if self._hangs:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise

    async def GetStatus(  # type: ignore[override]
        self, request: scheduler_pb2.GetSchedulerStatusRequest, context: Any
    ) -> scheduler_pb2.GetSchedulerStatusResponse:
        return scheduler_pb2.GetSchedulerStatusResponse(num_waiting=2, num_running=3, num_workers=1)


@contextlib.asynccontextmanager
async def scheduling(servicer: SchedulerStandIn) -> AsyncIterator[str]:
    """The address at which `servicer` answers."""
    async with service_host(ServiceSettings(), name="scheduler") as host:
        host.register(
            "emoe.v1.SchedulerService",
            lambda server: scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(servicer, server),
        )
        await host.start()
        await host.set_ready(True)
        yield host.address
