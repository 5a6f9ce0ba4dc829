"""Clients of the scheduler in this process: each asks once, and leaves, runs out of time or waits for the end."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import random

import grpc

from emoe.core.errors import NotReadyError, QueueFullError
from emoe.scheduler.service import SchedulerServicer
from emoe.v1 import generation_pb2

TASKS = ("qa", "code", "chat", "math")
TENANTS = ("", "blue", "blue", "blue", "red")


class Outcome(enum.Enum):
    DONE = "done"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    FAILED = "failed"


class AbortedError(Exception):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code


class SoakContext:
    """What a servicer sees of a call. Keeps how many tokens came, each exactly once and in order."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self.num_tokens = 0
        self.is_whole = False

    def time_remaining(self) -> float | None:
        return self._seconds

    async def write(self, data: bytes) -> None:
        message = generation_pb2.GenerateResponse.FromString(data)
        for token_id in message.token_ids:
            assert token_id == self.num_tokens, "a token was lost or doubled"
            self.num_tokens += 1
        self.is_whole = bool(message.finish_reason)

    async def abort(self, code: grpc.StatusCode, details: str = "", _metadata: object = ()) -> None:
        raise AbortedError(code, details)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a client is about to do."""

    request: generation_pb2.GenerateRequest
    deadline_seconds: float
    leaves_after_seconds: float | None


def make_plan(index: int, rng: random.Random) -> Plan:
    request = generation_pb2.GenerateRequest(
        text="word " * rng.randint(1, 400),
        task=rng.choice(TASKS),
        tenant=rng.choice(TENANTS),
        request_id=str(index),
        sampling=generation_pb2.Sampling(max_tokens=rng.randint(1, 12)),
    )
    if rng.random() < 0.3:
        request.slo.ttft_seconds = rng.choice((0.2, 1.0, 5.0))
    return Plan(
        request=request,
        deadline_seconds=rng.uniform(0.05, 2.0) if rng.random() < 0.1 else 60.0,
        leaves_after_seconds=rng.expovariate(1.0) if rng.random() < 0.1 else None,
    )


async def ask(servicer: SchedulerServicer, plan: Plan) -> Outcome:
    """An error that is none of ours, or says nothing, fails the test."""
    context = SoakContext(plan.deadline_seconds)
    call = asyncio.create_task(servicer.generate(plan.request.SerializeToString(), context))
    if plan.leaves_after_seconds is not None:
        asyncio.get_running_loop().call_later(plan.leaves_after_seconds, call.cancel)
    try:
        await call
    except asyncio.CancelledError:
        return Outcome.CANCELLED
    except (QueueFullError, NotReadyError, AbortedError) as error:
        return _outcome_of(error)
    assert context.is_whole
    assert context.num_tokens == plan.request.sampling.max_tokens
    return Outcome.DONE


def _outcome_of(error: QueueFullError | NotReadyError | AbortedError) -> Outcome:
    assert str(error)
    if isinstance(error, QueueFullError):
        assert error.retry_after_seconds > 0
        return Outcome.REFUSED
    if isinstance(error, AbortedError) and error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Outcome.EXPIRED
    return Outcome.FAILED
