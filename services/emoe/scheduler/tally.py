"""What of each task waits and runs, on which worker, and what came to each worker lately: told to the loader.

Counted as requests come and go, so that a report costs as much as there are tasks and workers, however long the queue.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from emoe.core.schedule.request import QueuedRequest
from emoe.scheduler.client import TaskLoad, WorkerTasks

RECENT_SECONDS = 60.0
"""A request that was sent so long ago counts 1/e."""
_FORGOTTEN_COUNT = 0.01


class TaskCount:
    """Of one task."""

    __slots__ = ("num_expected_tokens", "num_prompt_tokens", "num_running", "num_waiting", "num_waiting_tokens")

    def __init__(self) -> None:
        self.num_running = self.num_waiting = 0
        self.num_prompt_tokens = self.num_expected_tokens = self.num_waiting_tokens = 0

    def wait(self, request: QueuedRequest, sign: int) -> None:
        self.num_waiting += sign
        self.num_waiting_tokens += sign * (request.num_prompt_tokens + request.num_expected_tokens)
        self._count_tokens(request, sign)

    def run(self, request: QueuedRequest, sign: int) -> None:
        self.num_running += sign
        self._count_tokens(request, sign)

    @property
    def is_nothing(self) -> bool:
        return self.num_running == 0 and self.num_waiting == 0

    def _count_tokens(self, request: QueuedRequest, sign: int) -> None:
        self.num_prompt_tokens += sign * request.num_prompt_tokens
        self.num_expected_tokens += sign * request.num_expected_tokens

    def load(self, task: str) -> TaskLoad:
        return TaskLoad(
            task=task,
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            num_prompt_tokens=self.num_prompt_tokens,
            num_expected_tokens=self.num_expected_tokens,
            num_waiting_tokens=self.num_waiting_tokens,
        )


class _WorkerTally:
    def __init__(self) -> None:
        self.running: dict[str, TaskCount] = {}
        self.recent = RecentCounts()


class TaskTally:
    """Tables of tasks that wait or run, and of workers that are known: neither grows with the requests."""

    def __init__(self) -> None:
        self._tasks: dict[str, TaskCount] = {}
        self._workers: dict[str, _WorkerTally] = {}

    def wait(self, request: QueuedRequest) -> None:
        self._tasks.setdefault(request.task, TaskCount()).wait(request, 1)

    def unwait(self, request: QueuedRequest) -> None:
        self._tasks[request.task].wait(request, -1)
        _drop_nothing(self._tasks, request.task)

    def start(self, request: QueuedRequest, worker_id: str, now_seconds: float) -> None:
        """It waited before."""
        self.unwait(request)
        worker = self._workers.setdefault(worker_id, _WorkerTally())
        worker.recent.add(request.task, now_seconds)
        for table in (self._tasks, worker.running):
            table.setdefault(request.task, TaskCount()).run(request, 1)

    def stop(self, request: QueuedRequest, worker_id: str) -> None:
        for table in (self._tasks, self._workers[worker_id].running):
            table[request.task].run(request, -1)
            _drop_nothing(table, request.task)

    def forget_workers(self, known: frozenset[str]) -> None:
        """All but these, and those with running requests."""
        self._workers = {name: one for name, one in self._workers.items() if name in known or one.running}

    @property
    def num_entries(self) -> int:
        """Of all tables but what came lately: 0 when nothing waits and nothing runs."""
        return len(self._tasks) + sum(len(worker.running) for worker in self._workers.values())

    def loads(self) -> tuple[TaskLoad, ...]:
        return _loads(self._tasks)

    def worker_tasks(self, now_seconds: float) -> tuple[WorkerTasks, ...]:
        return tuple(
            WorkerTasks(worker_id=name, running=_loads(one.running), recent=one.recent.counts(now_seconds))
            for name, one in sorted(self._workers.items())
        )


class RecentCounts:
    """Counts that fade with time: what is old is worth less, and is forgotten in the end."""

    def __init__(self) -> None:
        self._counts: dict[str, float] = {}
        self._as_of_seconds = 0.0

    def add(self, task: str, now_seconds: float) -> None:
        self._fade(now_seconds)
        self._counts[task] = self._counts.get(task, 0.0) + 1.0

    def counts(self, now_seconds: float) -> Mapping[str, float]:
        self._fade(now_seconds)
        return dict(self._counts)

    def _fade(self, now_seconds: float) -> None:
        kept = math.exp(-max(0.0, now_seconds - self._as_of_seconds) / RECENT_SECONDS)
        self._as_of_seconds = max(now_seconds, self._as_of_seconds)
        self._counts = {task: kept * n for task, n in self._counts.items() if kept * n >= _FORGOTTEN_COUNT}


def _drop_nothing(table: dict[str, TaskCount], task: str) -> None:
    if table[task].is_nothing:
        del table[task]


def _loads(table: Mapping[str, TaskCount]) -> tuple[TaskLoad, ...]:
    return tuple(table[task].load(task) for task in sorted(table))
