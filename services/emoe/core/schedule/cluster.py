"""The workers and what runs on them, as scheduling sees it: the same state in the service and in the simulator.

It is told of starts, first tokens, progress and ends, and of what workers report; it foretells what a further request
would meet on each worker. It has no clock, and knows nothing of what still waits.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from emoe.core.schedule.load import WorkerLoad, WorkerReport
from emoe.core.schedule.request import QueuedRequest
from emoe.core.schedule.running import Running
from emoe.core.schedule.table import FloatArray, WorkerTable

__all__ = ["Cluster", "WorkerReport"]

BoolArray = npt.NDArray[np.bool_]
RowArray = npt.NDArray[np.intp]
"""Workers, by their places."""


class Cluster:
    """Arrays have one place a worker, in the order of `worker_ids`, and hold until the next change."""

    def __init__(self) -> None:
        self.table = WorkerTable()
        """For policies, to read."""
        self._workers: list[WorkerLoad] = []
        self._by_id: dict[str, WorkerLoad] = {}
        self._running: dict[str, Running] = {}
        self._limits: Counter[int] = Counter()
        self.limits: tuple[int, ...] = ()
        """What a sequence may take at most, on one worker or another; ascending."""
        self.num_free_sequences = 0
        self.num_prompt_tokens = 0
        """Of what has started and has no first token yet."""
        self.num_answer_tokens = 0
        """That the answers of all running requests are expected to need still."""
        self._misses_cost = False
        """Whether absent experts ever made anybody wait (exact mode)."""

    def update(self, report: WorkerReport) -> None:
        """A worker joins, or has news of itself: what it can take is as it says."""
        self._misses_cost |= report.costs.missed_token_seconds > 0.0
        worker = self._by_id.get(report.worker_id)
        if worker is None:
            worker = WorkerLoad(report, self.table, self.table.append())
            self._workers.append(worker)
            self._by_id[report.worker_id] = worker
            self._count_limit(report.max_tokens_per_sequence, 1)
        else:
            self.num_free_sequences -= max(0, worker.free_sequences)
            if worker.max_tokens != report.max_tokens_per_sequence:
                self._count_limit(worker.max_tokens, -1)
                self._count_limit(report.max_tokens_per_sequence, 1)
            worker.update(report)
        self.num_free_sequences += max(0, worker.free_sequences)

    def remove(self, worker_id: str) -> None:
        """With what runs there; a worker that is not known is no error."""
        worker = self._by_id.pop(worker_id, None)
        if worker is None:
            return
        self.table.remove(worker.row)
        last = self._workers.pop()
        if last is not worker:
            self._workers[worker.row] = last
            last.row = worker.row
        worker.row = -1
        self.num_free_sequences -= max(0, worker.free_sequences)
        self._count_limit(worker.max_tokens, -1)
        self.num_prompt_tokens -= worker.prompt_tokens
        self._running = {name: running for name, running in self._running.items() if running.worker is not worker}
        self.num_answer_tokens = sum(running.num_left for running in self._running.values())

    @property
    def worker_ids(self) -> tuple[str, ...]:
        return tuple(worker.worker_id for worker in self._workers)

    @property
    def num_workers(self) -> int:
        return len(self._workers)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def worker_id(self, row: int) -> str:
        return self._workers[row].worker_id

    def start(self, request: QueuedRequest, worker_id: str, now_seconds: float) -> None:
        worker = self._by_id[worker_id]
        running = self._running[request.request_id] = Running(request, worker)
        self.num_free_sequences -= worker.free_sequences > 0
        self.num_prompt_tokens += request.num_prompt_tokens
        self.num_answer_tokens += running.num_left
        worker.start(running, now_seconds)

    def first_token(self, request_id: str, now_seconds: float) -> None:
        """Its prompt is done, it decodes from now on."""
        running = self._running.get(request_id)
        if running is not None and running.first_token_seconds is None:
            self._first_token(running, now_seconds)

    def _first_token(self, running: Running, now_seconds: float) -> None:
        self.num_prompt_tokens -= running.request.num_prompt_tokens
        self.num_answer_tokens -= running.num_left
        running.worker.first_token(running, now_seconds)
        self.num_answer_tokens += running.num_left

    def progressed(self, request_id: str, num_tokens: int, now_seconds: float) -> None:
        """So many tokens of its answer are there; to be told every now and then, rather than at each."""
        running = self._running.get(request_id)
        if running is None:
            return
        if running.first_token_seconds is None:
            self._first_token(running, now_seconds)
        self.num_answer_tokens -= running.num_left
        running.worker.progressed(running, num_tokens, now_seconds)
        self.num_answer_tokens += running.num_left

    def end(self, request_id: str, now_seconds: float) -> None:
        """However it ended; a request that does not run (its worker left) is no error."""
        running = self._running.pop(request_id, None)
        if running is not None:
            if running.first_token_seconds is None:
                self.num_prompt_tokens -= running.request.num_prompt_tokens
            self.num_answer_tokens -= running.num_left
            running.worker.end(running, now_seconds)
            self.num_free_sequences += running.worker.free_sequences > 0

    def fitting(self, request: QueuedRequest) -> RowArray:
        """Those that `fits`."""
        return self.fits(request).nonzero()[0]

    def fits(self, request: QueuedRequest) -> BoolArray:
        """Where a sequence of its length is free."""
        table = self.table
        fits: BoolArray = table.free > 0.0
        if self.limits and request.num_kv_tokens > self.limits[0]:
            fits &= table.limit >= request.num_kv_tokens
        return fits

    def most_tokens(self) -> int:
        """The longest sequence that some worker could take now; 0 where none has a free one."""
        if self.num_free_sequences <= 0:
            return 0
        if len(self.limits) == 1:
            return self.limits[0]
        table = self.table
        return int(np.max(table.limit, where=table.free > 0.0, initial=0.0))

    @property
    def free_sequences(self) -> FloatArray:
        return self.table.free

    @property
    def least_slack_seconds(self) -> FloatArray:
        """By how long what runs there can still be delayed and meet its targets; what has lost them does not count."""
        return self.table.slack

    @property
    def step_seconds(self) -> FloatArray:
        """Of a step of what decodes there, alone."""
        return self.table.step

    @property
    def prompt_tokens(self) -> FloatArray:
        """Of what has started and has no first token yet."""
        return self.table.prompts

    def coverage(self, task: str) -> FloatArray:
        return self.table.coverage(task)

    def missed_seconds(self, request: QueuedRequest) -> FloatArray:
        """What absent experts cost its prompt."""
        each = self.table.missed_seconds
        missed: FloatArray = (1.0 - self.coverage(request.task)) * each * float(request.num_prompt_tokens)
        return missed

    def delay_seconds(self, request: QueuedRequest) -> FloatArray:
        """What its prompt adds to the steps of those that run (eMoE's dE + W c)."""
        delay: FloatArray = self.table.prompt_seconds * float(request.num_prompt_tokens)
        if self._misses_cost:
            delay += self.missed_seconds(request)
        return delay

    def predict_wait_seconds(self, request: QueuedRequest, now_seconds: float) -> FloatArray:
        """From now to its first token: the prompts that were sent before it, its own, and experts that it misses."""
        return self.forecast(request, now_seconds)[0]

    def forecast(self, request: QueuedRequest, now_seconds: float) -> tuple[FloatArray, FloatArray]:
        """`predict_wait_seconds` and `delay_seconds`."""
        table, delay = self.table, self.delay_seconds(request)
        wait: FloatArray = np.ceil(request.num_prompt_tokens / table.room)
        wait *= table.step
        wait += delay
        wait += np.maximum(table.clear - now_seconds, 0.0)
        return wait, delay

    def wait_seconds_on(self, row: int, request: QueuedRequest, now_seconds: float) -> float:
        """The same on one worker."""
        return self._workers[row].wait_seconds(request, now_seconds)

    def delay_seconds_on(self, row: int, request: QueuedRequest) -> float:
        """`delay_seconds` of one worker."""
        return self._workers[row].delay_seconds(request)

    def _count_limit(self, limit: int, change: int) -> None:
        self._limits[limit] += change
        if self._limits[limit] <= 0:
            del self._limits[limit]
        if len(self._limits) != len(self.limits) or limit not in self.limits:
            self.limits = tuple(sorted(self._limits))
