"""The workers that this scheduler may send requests to, as the loader lists them and as they answer.

The loader's list decides who gets new requests. A worker that drops off the list, or whose calls break, keeps the calls
it has for as long as it answers probes: a loader that restarts must not end a healthy stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from emoe.core.schedule.cluster import Cluster
from emoe.scheduler.client import ReportedWorker, WorkerClient
from emoe.scheduler.costs import CostMemory
from emoe.scheduler.worker import Worker, key_of

log = logging.getLogger(__name__)

MAX_FULL_SECONDS = 1.0
"""A worker that refused a request is asked again after so long at the latest."""


class WorkerPool:
    """Keeps `cluster` to what the workers say, worker by worker as it changes: only usable ones are in it, by their
    `key`. `on_change` is called after anything that may let a waiting request run."""

    def __init__(
        self,
        cluster: Cluster,
        costs: CostMemory | None = None,
        *,
        connect: Callable[[str], WorkerClient] = WorkerClient,
    ) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.found_ready = asyncio.Event()
        self.doubted = asyncio.Event()
        self.membership = asyncio.Event()
        """Set when a worker has come or gone; its one reader clears it."""
        self.num_refusals = 0
        """Requests that a worker refused as too many, and that were queued again or given up."""
        self._cluster = cluster
        self._costs = costs or CostMemory()
        self._connect = connect
        self._workers: dict[str, Worker] = {}
        self._loader_connected = False
        self._most_tokens = 0

    def get(self, key: str) -> Worker:
        return self._workers[key]

    def workers(self) -> tuple[Worker, ...]:
        return tuple(self._workers.values())

    @property
    def num_usable(self) -> int:
        return self._cluster.num_workers

    def take(self, worker: Worker) -> None:
        """One more runs there; the cluster knows already."""
        worker.num_in_flight += 1

    def release(self, worker: Worker) -> None:
        worker.num_in_flight -= 1
        if self._takes_requests(worker):
            self._update(worker)

    def hear(self, worker: Worker, *, is_serving: bool) -> None:
        """From the worker's own health, however it was heard."""
        if worker.serves == is_serving:
            return
        worker.serves = is_serving
        log.info("worker %s %s", worker.key, "serves" if is_serving else "does not serve: no new request goes to it")
        self._changed(worker)

    def hears_nothing(self, worker: Worker) -> None:
        """It hangs: what has not begun there goes elsewhere, if there is an elsewhere."""
        self.hear(worker, is_serving=False)
        if self.num_usable:
            worker.end_movable_calls()

    def suspect(self, worker: Worker) -> None:
        """A call broke: nothing more is sent to this worker until it answers a probe."""
        worker.answers = False
        self._show(worker)
        self.doubted.set()

    def refused(self, worker: Worker, *, retry_seconds: float) -> None:
        """It is full: nothing more is sent to it until it reports anew, or the time is over that it asked for."""
        self.num_refusals += 1
        worker.is_full = True
        self._show(worker)
        log.debug("worker %s is full: it refused a request that its report had room for", worker.key)
        pause = min(retry_seconds, MAX_FULL_SECONDS)
        asyncio.get_running_loop().call_later(pause, self._reopen, worker)

    async def update(self, reports: Sequence[ReportedWorker]) -> None:
        """The loader's whole list."""
        self._loader_connected = True
        listed = {key_of(report): report for report in reports}
        changed = [worker for key, report in listed.items() if (worker := self._list(key, report)) is not None]
        for key, worker in self._workers.items():
            if worker.listed and key not in listed:
                worker.listed = False
                changed.append(worker)
        self._show(*changed)
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
        self._changed(*doubtful)

    async def aclose(self) -> None:
        await self._forget(self._workers.values())

    def _list(self, key: str, report: ReportedWorker) -> Worker | None:
        """The worker, where anything about it is new."""
        known = self._workers.get(key)
        if known is None:
            log.info("worker %s at %s is listed", report.worker_id, report.address)
            self.membership.set()
            known = self._workers[key] = Worker(report, connect=self._connect)
        elif not known.observe(report) and known.listed:
            return None
        known.listed = True
        return known

    async def _forget(self, workers: Iterable[Worker]) -> None:
        for worker in list(workers):
            if self._workers.pop(worker.key, None) is worker:
                log.info("worker %s at %s is forgotten", worker.worker_id, worker.reported.address)
                self._show(worker)
                self.membership.set()
                await worker.client.close()

    def _reopen(self, worker: Worker) -> None:
        worker.is_full = False
        self._changed(worker)

    def _changed(self, *workers: Worker) -> None:
        self._show(*workers)
        if self.num_usable:
            self.found_ready.set()
        self.on_change()

    def _show(self, *workers: Worker) -> None:
        """Anything about them may have changed."""
        if not workers:
            return
        for worker in workers:
            if worker.reported.costs is not None:
                self._costs.observe(worker.worker_id, worker.reported.costs)
            if not self._takes_requests(worker):
                self._cluster.remove(worker.key)
        usable = [one for one in self._workers.values() if one.usable]
        most_tokens = max((one.reported.max_tokens_per_sequence for one in usable), default=0)
        is_other = most_tokens != self._most_tokens
        self._most_tokens = most_tokens
        for worker in usable if is_other else workers:
            if self._takes_requests(worker):
                self._update(worker)

    def _takes_requests(self, worker: Worker) -> bool:
        return worker.usable and self._workers.get(worker.key) is worker

    def _update(self, worker: Worker) -> None:
        guess = self._costs.guess(worker.worker_id)
        self._cluster.update(worker.report(guess, most_tokens=self._most_tokens))
