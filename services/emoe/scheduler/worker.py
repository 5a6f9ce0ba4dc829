"""One worker process as the scheduler knows it: its last report, what was sent to it since, and whether it answers."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable

import grpc

from emoe.core.schedule.cluster import WorkerReport
from emoe.core.schedule.costs import StepCosts
from emoe.runtime.cancellation import this_task_is_cancelled
from emoe.scheduler.client import ByteStream, ReportedWorker, WorkerClient

log = logging.getLogger(__name__)

MAX_FAILED_PROBES = 2
ANY_LENGTH = 2**31


class Worker:
    def __init__(self, reported: ReportedWorker, *, connect: Callable[[str], WorkerClient] = WorkerClient) -> None:
        self.key = key_of(reported)
        self.reported = reported
        self.client = connect(reported.address)
        self.listed = True
        self.answers = True
        self.serves = True
        """By its own health; true until something else is heard, for the loader listed it as ready."""
        self.calls: set[ByteStream] = set()
        self.movable_calls: set[ByteStream] = set()
        """Those of them that have no first message yet, and may still go elsewhere."""
        self.num_in_flight = 0
        self.is_full = False
        """It refused a request, and has reported nothing new since."""
        self._num_in_flight_at_report = 0
        self._num_failed_probes = 0

    @property
    def worker_id(self) -> str:
        return self.reported.worker_id

    @property
    def forgettable(self) -> bool:
        return not self.listed and self.num_in_flight == 0

    @property
    def usable(self) -> bool:
        return self.listed and self.answers and self.serves and self.reported.ready

    @property
    def free_sequences(self) -> int:
        """Free by its last report, less what was sent since; and never more in flight from here than it holds in all,
        for the report may be older than what was sent just before it came."""
        if self.is_full:
            return 0
        sent_since = self.num_in_flight - self._num_in_flight_at_report
        in_all = self.reported.free_sequences + self.reported.num_sequences
        return max(0, min(self.reported.free_sequences - sent_since, in_all - self.num_in_flight))

    def report(self, guess: StepCosts, *, most_tokens: int) -> WorkerReport:
        """`guess`: of what it costs where it has not measured. `most_tokens`: of the largest worker's sequences. A
        request's length is an estimate: one that seems too long for every worker goes to the largest, which knows."""
        limit = self.reported.max_tokens_per_sequence
        return WorkerReport(
            worker_id=self.key,
            free_sequences=self.free_sequences,
            max_tokens_per_sequence=limit if limit < most_tokens else ANY_LENGTH,
            costs=self.reported.costs or guess,
            coverage=self.reported.coverage or {},
        )

    def observe(self, reported: ReportedWorker) -> bool:
        """Whether anything is new. The same again is no news: the loader lists all workers whenever one of them has
        some, and what was sent on this report must not be sent on it once more."""
        known = self.reported
        if reported.coverage is None:
            reported = dataclasses.replace(reported, coverage=known.coverage)
        self.reported = reported
        if reported == known:
            return reported.coverage != known.coverage
        self.is_full = False
        self._num_in_flight_at_report = self.num_in_flight
        return True

    def end_calls(self) -> None:
        """Rather than leave them to hang."""
        for call in list(self.calls):
            call.cancel()

    def end_movable_calls(self) -> None:
        """They go elsewhere rather than wait for a worker that does not answer."""
        for call in list(self.movable_calls):
            call.cancel()

    async def probe(self, *, timeout_seconds: float) -> None:
        """Ask whether it lives. After too much silence its calls are ended."""
        try:
            self._answered(await self.client.get_state(timeout_seconds=timeout_seconds))
        except asyncio.CancelledError:
            if this_task_is_cancelled():
                raise
        except grpc.aio.UsageError:
            log.debug("worker %s was forgotten before it was asked", self.key)
        except grpc.aio.AioRpcError as error:
            # A worker that drains takes no connection any more, and still ends what it runs.
            is_silent = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            self._failed_probe(error.details() or error.code().name, is_silent=is_silent)

    def _answered(self, reported: ReportedWorker) -> None:
        if reported.worker_id != self.worker_id:
            self._failed_probe(f"{reported.worker_id} has its address now", is_silent=True)
            return
        self.observe(reported)
        self.answers, self._num_failed_probes = True, 0

    def _failed_probe(self, reason: str, *, is_silent: bool) -> None:
        self.answers = False
        self._num_failed_probes += is_silent
        log.debug("worker %s does not answer: %s", self.key, reason)
        if self._num_failed_probes >= MAX_FAILED_PROBES:
            self.end_calls()


def key_of(reported: ReportedWorker) -> str:
    """A worker that comes back elsewhere is another one: the calls to the first are not its."""
    return f"{reported.worker_id} at {reported.address}"
