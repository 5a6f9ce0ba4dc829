"""An open load on a running system: each request leaves at its own time, whatever became of those before it.

Latencies count from the time at which a request was meant to leave, so a system that stalls is charged with all that
came meanwhile (no coordinated omission), and so is a client that is late; by how much it was is told. Knows the front
door's contract and nothing behind it.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import grpc.aio

from emoe.bench.schedule_slos import slo_of
from emoe.bench.schedule_trace import Workload
from emoe.core.slo import Slo
from emoe.v1 import generation_pb2

GENERATE = "/emoe.v1.SchedulerService/Generate"
NO_END = "NO_FINISH_REASON"
SHORT = "WRONG_LENGTH"
LEAD_SECONDS = 0.1
"""Between the start and the first request's time."""

PromptWriter = Callable[[int, generation_pb2.GenerateRequest], None]
"""Writes the prompt of the request with that number into the message."""


@dataclasses.dataclass(kw_only=True)
class ServeOutcome:
    """What became of each request, in seconds from the beginning; NaN where it never came to that."""

    sent_seconds: list[float]
    first_token_seconds: list[float]
    end_seconds: list[float]
    """Of those that ended well."""
    queue_seconds: list[float]
    """As the scheduler says it."""
    failures: dict[int, str]
    """Number -> why; RESOURCE_EXHAUSTED is a refusal."""
    processor_seconds: float = 0.0
    """That this client took."""
    num_messages: int = 0
    most_at_once: int = 0

    @classmethod
    def of(cls, num_requests: int) -> ServeOutcome:
        sent, first, end, queue = ([math.nan] * num_requests for _ in range(4))
        return cls(sent_seconds=sent, first_token_seconds=first, end_seconds=end, queue_seconds=queue, failures={})

    @property
    def ended(self) -> list[int]:
        """Numbers of the requests that came to an end, good or bad."""
        return [number for number, at in enumerate(self.end_seconds) if at == at or number in self.failures]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadProgress:
    elapsed_seconds: float
    num_requests: int
    num_sent: int
    num_running: int
    num_done: int
    num_refused: int
    num_failed: int
    num_attained: int
    late_seconds: float
    """Of the request that was sent last."""

    @property
    def attainment(self) -> float | None:
        ended = self.num_done + self.num_refused + self.num_failed
        return self.num_attained / ended if ended else None


class OpenLoad:
    """One replay of a workload against one channel; `outcome` is right at any time, also after `run` was cancelled."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        workload: Workload,
        slos: Mapping[str, Slo],
        write_prompt: PromptWriter,
        *,
        timeout_seconds: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.outcome = ServeOutcome.of(len(workload))
        self._generate: Any = channel.unary_stream(GENERATE, request_serializer=None, response_deserializer=None)
        self._workload = workload
        self._slos = {task: slo_of(slos, task) for task in set(workload.tasks)}
        self._write_prompt = write_prompt
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._began = 0.0
        self._last_sent = -1
        self._num_running = 0
        self._counts: collections.Counter[str] = collections.Counter()

    async def run(self) -> None:
        """Until every request has ended, by its deadline at the latest."""
        processor_began = time.process_time()
        self._began = self._clock() + LEAD_SECONDS
        try:
            async with asyncio.TaskGroup() as group:
                for number, at_seconds in enumerate(self._workload.arrived_seconds):
                    wait_seconds = self._began + at_seconds - self._clock()
                    # Of many that are due, each gets the loop once in a while, and answers are read in between.
                    await asyncio.sleep(max(0.0, wait_seconds))
                    group.create_task(self._send(number))
        finally:
            self.outcome.processor_seconds = time.process_time() - processor_began

    def progress(self) -> LoadProgress:
        counts, last = self._counts, self._last_sent
        late = self.outcome.sent_seconds[last] - self._workload.arrived_seconds[last] if last >= 0 else 0.0
        return LoadProgress(
            elapsed_seconds=max(0.0, self._now()),
            num_requests=len(self._workload),
            num_sent=last + 1,
            num_running=self._num_running,
            num_done=counts["done"],
            num_refused=counts["refused"],
            num_failed=counts["failed"],
            num_attained=counts["attained"],
            late_seconds=late,
        )

    def _now(self) -> float:
        return self._clock() - self._began

    async def _send(self, number: int) -> None:
        request = self._request(number)
        self._num_running += 1
        self.outcome.most_at_once = max(self.outcome.most_at_once, self._num_running)
        self.outcome.sent_seconds[number] = self._now()
        self._last_sent = max(self._last_sent, number)
        try:
            failure = await self._follow(number, self._generate(request, timeout=self._timeout_seconds))
        except grpc.aio.AioRpcError as error:
            failure = error.code().name
        finally:
            self._num_running -= 1
        self._note(number, failure)

    async def _follow(self, number: int, call: Any) -> str | None:
        """-> why it did not end as it should."""
        outcome, num_tokens = self.outcome, 0
        async for raw in call:
            outcome.num_messages += 1
            message = generation_pb2.GenerateResponse.FromString(raw)
            if not num_tokens and message.token_ids:
                outcome.first_token_seconds[number] = self._now()
            if message.request_id:
                outcome.queue_seconds[number] = message.queue_seconds
            num_tokens += len(message.token_ids)
            if message.finish_reason:
                if num_tokens != self._workload.answer_tokens[number]:
                    return SHORT
                outcome.end_seconds[number] = self._now()
                return None
        return NO_END

    def _request(self, number: int) -> bytes:
        task = self._workload.tasks[number]
        slo = self._slos[task]
        message = generation_pb2.GenerateRequest(
            task=task,
            slo=generation_pb2.Slo(
                ttft_seconds=slo.ttft_seconds, tpot_seconds=slo.tpot_seconds, end_to_end_seconds=slo.end_to_end_seconds
            ),
            sampling=generation_pb2.Sampling(
                max_tokens=self._workload.answer_tokens[number], temperature=0.0, ignore_eos=True
            ),
        )
        self._write_prompt(number, message)
        return message.SerializeToString()

    def _note(self, number: int, failure: str | None) -> None:
        if failure is not None:
            self.outcome.failures[number] = failure
            self._counts["refused" if failure == "RESOURCE_EXHAUSTED" else "failed"] += 1
            return
        self._counts["done"] += 1
        self._counts["attained"] += self._attains(number)

    def _attains(self, number: int) -> bool:
        arrived = self._workload.arrived_seconds[number]
        first, end = self.outcome.first_token_seconds[number], self.outcome.end_seconds[number]
        slo, num_later = self._slos[self._workload.tasks[number]], max(1, self._workload.answer_tokens[number] - 1)
        return (
            first - arrived <= (slo.ttft_seconds or math.inf)
            and (end - first) / num_later <= (slo.tpot_seconds or math.inf)
            and end - arrived <= (slo.end_to_end_seconds or math.inf)
        )
