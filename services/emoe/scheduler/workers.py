"""The workers that this scheduler may send requests to, as the loader lists them and as they answer.

The loader's list decides who gets new requests. A worker that drops off the list, or whose calls break, keeps the calls
it has for as long as it answers probes: a loader that restarts must not end a healthy stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

import grpc

from emoe.core.admission import WorkerCapacity
from emoe.runtime.cancellation import this_task_is_cancelled
from emoe.scheduler.client import ByteStream, ReportedWorker, WorkerClient

log = logging.getLogger(__name__)

MAX_FAILED_PROBES = 2
MAX_FULL_SECONDS = 1.0
"""A worker that refused a request is asked again after so long at the latest."""


class Worker:
    """One worker process: its last report, and what was sent to it since."""

    def __init__(self, reported: ReportedWorker) -> None:
        self.key = _key(reported)
        self.reported = reported
        self.client = WorkerClient(reported.address)
        self.listed = True
        self.answers = True
        self.serves = True
        """By its own health; true until something else is heard, for the loader listed it as ready."""
        self.calls: set[ByteStream] = set()
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

    def capacity(self) -> WorkerCapacity:
        return WorkerCapacity(
            worker_id=self.key,
            free_sequences=self.free_sequences,
            max_tokens_per_sequence=self.reported.max_tokens_per_sequence,
        )

    def observe(self, reported: ReportedWorker) -> None:
        """The same again is no news: the loader lists all workers whenever one of them has some, and what was sent on
        this report must not be sent on it once more."""
        if reported != self.reported:
            self.reported = reported
            self.is_full = False
            self._num_in_flight_at_report = self.num_in_flight

    def end_calls(self) -> None:
        """Rather than leave them to hang."""
        for call in list(self.calls):
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


class WorkerPool:
    """`on_change` is called after anything that may let a waiting request run."""

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.found_ready = asyncio.Event()
        self.doubted = asyncio.Event()
        self.membership = asyncio.Event()
        """Set when a worker has come or gone; its one reader clears it."""
        self.num_refusals = 0
        """Requests that a worker refused as too many, and that were queued again or given up."""
        self._workers: dict[str, Worker] = {}
        self._loader_connected = False

    def get(self, key: str) -> Worker:
        return self._workers[key]

    def workers(self) -> tuple[Worker, ...]:
        return tuple(self._workers.values())

    def hear(self, worker: Worker, *, is_serving: bool) -> None:
        """From the worker's own health, however it was heard."""
        if worker.serves == is_serving:
            return
        worker.serves = is_serving
        log.info("worker %s %s", worker.key, "serves" if is_serving else "does not serve: no new request goes to it")
        self._changed()

    def suspect(self, worker: Worker) -> None:
        """A call broke: nothing more is sent to this worker until it answers a probe."""
        worker.answers = False
        self.doubted.set()

    def refused(self, worker: Worker, *, retry_seconds: float) -> None:
        """It is full: nothing more is sent to it until it reports anew, or the time is over that it asked for."""
        self.num_refusals += 1
        worker.is_full = True
        log.debug("worker %s is full: it refused a request that its report had room for", worker.key)
        pause = min(retry_seconds, MAX_FULL_SECONDS)
        asyncio.get_running_loop().call_later(pause, self._reopen, worker)

    @property
    def num_usable(self) -> int:
        return sum(worker.usable for worker in self._workers.values())

    def capacities(self) -> list[WorkerCapacity]:
        """Of the workers that can take a request now."""
        return [worker.capacity() for worker in self._workers.values() if worker.usable and worker.free_sequences]

    def max_tokens_per_sequence(self) -> int:
        """Of the largest usable worker; 0 without any."""
        workers = (worker for worker in self._workers.values() if worker.usable)
        return max((worker.reported.max_tokens_per_sequence for worker in workers), default=0)

    async def update(self, reports: Sequence[ReportedWorker]) -> None:
        """The loader's whole list."""
        self._loader_connected = True
        for report in reports:
            self._observe(report)
        listed = {_key(report) for report in reports}
        for key, worker in self._workers.items():
            worker.listed = key in listed
        await self._forget(worker for worker in self._workers.values() if worker.forgettable)
        self._changed()

    def lose_loader(self) -> None:
        """The last list stands, but every worker on it is probed from now on."""
        self._loader_connected = False

    async def probe(self, *, timeout_seconds: float) -> None:
        """Ask every worker that the loader does not vouch for."""
        doubtful = [w for w in self._workers.values() if not (self._loader_connected and w.listed and w.answers)]
        if not doubtful:
            return
        await asyncio.gather(*(worker.probe(timeout_seconds=timeout_seconds) for worker in doubtful))
        await self._forget(worker for worker in doubtful if worker.forgettable)
        self._changed()

    async def aclose(self) -> None:
        await self._forget(self._workers.values())

    def _observe(self, report: ReportedWorker) -> None:
        known = self._workers.get(_key(report))
        if known is None:
            log.info("worker %s at %s is listed", report.worker_id, report.address)
            self._workers[_key(report)] = Worker(report)
            self.membership.set()
        else:
            known.observe(report)

    async def _forget(self, workers: Iterable[Worker]) -> None:
        for worker in list(workers):
            if self._workers.pop(worker.key, None) is worker:
                log.info("worker %s at %s is forgotten", worker.worker_id, worker.reported.address)
                self.membership.set()
                await worker.client.close()

    def _reopen(self, worker: Worker) -> None:
        worker.is_full = False
        self._changed()

    def _changed(self) -> None:
        if self.num_usable:
            self.found_ready.set()
        self.on_change()


def _key(reported: ReportedWorker) -> str:
    """A worker that comes back elsewhere is another one: the calls to the first are not its."""
    return f"{reported.worker_id} at {reported.address}"
