"""Which tasks run and wait, over all schedulers, and how many prompts they have admitted.

The service feeds it from the schedulers' reports; the planning loop reads the mix to plan for and the prompts that the
refresh interval counts. Knows neither gRPC nor workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from emoe.core.errors import QueueFullError
from emoe.loader.news import News

_RETRY_AFTER_SECONDS = 5.0
_LENGTH_WEIGHT = 0.05
"""Of the requests that a report tells of, in what is remembered of their lengths."""
_MAX_LENGTHS = 256

Placed = Mapping[str, Mapping[str, float]]
"""Worker -> task -> requests that run there or were sent lately, the older the less."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskReport:
    """A scheduler's tasks now: tokens to come of each, those of waiting requests among them, requests of each, and the
    prompts admitted since it started. `placed` is None of a scheduler that does not say what it sends where."""

    task_tokens: Mapping[str, float]
    waiting_tokens: Mapping[str, float] = dataclasses.field(default_factory=dict)
    task_requests: Mapping[str, int] = dataclasses.field(default_factory=dict)
    placed: Placed | None = None
    num_prompts: int


@dataclasses.dataclass(eq=False)
class Scheduler:
    """One that reports now. `num_prompts` is None until it was first heard of."""

    task_tokens: Mapping[str, float]
    num_prompts: int | None
    waiting_tokens: Mapping[str, float] = dataclasses.field(default_factory=dict)
    placed: Placed | None = None


class TaskMix:
    """`planning` is told of changes of the mix and of admitted prompts, not of reports that say the same again."""

    def __init__(self, *, planning: News, max_schedulers: int = 64) -> None:
        self.version = 0
        """Rises when `task_tokens` or `waiting_tokens` change."""
        self.num_prompts = 0
        """Never falls: a scheduler that starts again counts from zero, and so is added anew."""
        self.placed: Placed = {}
        """Over all schedulers that say so; as it last was when none does any more."""
        self.placed_version = 0
        self._lengths: dict[str, float] = {}
        self._task_tokens: dict[str, float] = {}
        self._waiting_tokens: dict[str, float] = {}
        self._planning = planning
        self._max_schedulers = max_schedulers
        self._open: dict[str, Scheduler] = {}
        self._closed: dict[str, int] = {}

    @property
    def task_tokens(self) -> Mapping[str, float]:
        """When nothing runs or waits, the last mix stands: the next prompts are likely of its kind."""
        return self._task_tokens

    @property
    def waiting_tokens(self) -> Mapping[str, float]:
        """Of requests that wait at the schedulers; none when none does."""
        return self._waiting_tokens

    def tokens_per_request(self, task: str) -> float:
        """As the requests were that were told of; of a task without any, as those of the others."""
        known = self._lengths.get(task)
        return known or sum(self._lengths.values()) / (len(self._lengths) or 1) or 1.0

    @contextlib.contextmanager
    def joined(self, scheduler_id: str) -> Iterator[Scheduler]:
        """The scheduler's tasks count inside. A second stream of the same scheduler takes the place of the first."""
        older = self._open.pop(scheduler_id, None)
        if older is None and len(self._open) >= self._max_schedulers:
            raise QueueFullError(
                f"{self._max_schedulers} schedulers report already", retry_after_seconds=_RETRY_AFTER_SECONDS
            )
        known = self._closed.pop(scheduler_id, None) if older is None else older.num_prompts
        scheduler = self._open[scheduler_id] = Scheduler(task_tokens={}, num_prompts=known)
        try:
            yield scheduler
        finally:
            if self._open.get(scheduler_id) is scheduler:
                del self._open[scheduler_id]
                self._remember(scheduler_id, scheduler)
                self._merge()

    def update(self, scheduler: Scheduler, report: TaskReport) -> None:
        """What an older stream of the same scheduler still says is not heard."""
        if scheduler not in self._open.values():
            return
        before, scheduler.num_prompts = scheduler.num_prompts, report.num_prompts
        scheduler.task_tokens, scheduler.waiting_tokens = report.task_tokens, report.waiting_tokens
        scheduler.placed = report.placed
        self._observe_lengths(report)
        # The first report of a scheduler never seen tells where it stands, not what came in since.
        added = 0 if before is None else report.num_prompts - before
        self.num_prompts += report.num_prompts if added < 0 else added
        self._merge()
        if added:
            self._planning.announce()

    def _merge(self) -> None:
        task_tokens = _sum(scheduler.task_tokens for scheduler in self._open.values()) or self._task_tokens
        waiting_tokens = _sum(scheduler.waiting_tokens for scheduler in self._open.values())
        placed = _sum_placed(s.placed for s in self._open.values() if s.placed is not None) or self.placed
        if (task_tokens, waiting_tokens) != (self._task_tokens, self._waiting_tokens):
            self._task_tokens, self._waiting_tokens = task_tokens, waiting_tokens
            self.version += 1
            self._planning.announce()
        if placed != self.placed:
            self.placed = placed
            self.placed_version += 1
            self._planning.announce()

    def _observe_lengths(self, report: TaskReport) -> None:
        for task, num_requests in report.task_requests.items():
            if num_requests and report.task_tokens.get(task, 0.0) > 0:
                length = report.task_tokens[task] / num_requests
                known = self._lengths.pop(task, length)
                self._lengths[task] = known + _LENGTH_WEIGHT * (length - known)
        while len(self._lengths) > _MAX_LENGTHS:
            del self._lengths[next(iter(self._lengths))]

    def _remember(self, scheduler_id: str, scheduler: Scheduler) -> None:
        """So that a scheduler that only lost its connection goes on counting."""
        if scheduler.num_prompts is not None:
            self._closed[scheduler_id] = scheduler.num_prompts
        while len(self._closed) > self._max_schedulers:
            del self._closed[next(iter(self._closed))]


def _sum(loads: Iterable[Mapping[str, float]]) -> dict[str, float]:
    merged: dict[str, float] = defaultdict(float)
    for load in loads:
        for task, tokens in load.items():
            if tokens > 0:
                merged[task] += tokens
    return dict(merged)


def _sum_placed(told: Iterable[Placed]) -> Placed:
    merged: dict[str, list[Mapping[str, float]]] = defaultdict(list)
    for placed in told:
        for worker_id, tasks in placed.items():
            merged[worker_id].append(tasks)
    return {worker_id: _sum(loads) for worker_id, loads in merged.items()}
