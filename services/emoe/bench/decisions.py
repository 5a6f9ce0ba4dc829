"""`emoe bench decisions`: what one decision of the scheduler costs, with long queues and many workers.

The service's own desk and policies, on one core, without a network. The queue stays about as long as it is: at each
turn a request tells of its progress, one ends and one arrives, all that may start is let in and tells of its first
token, and now and then a worker reports another plan's coverage. The mean is the time of all turns over the requests
that were let in; quantiles are of turns, since a policy that holds requests back lets in none at one and several at
another.
"""

from __future__ import annotations

import collections
import dataclasses
import gc
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from emoe.bench.machine import describe_machine
from emoe.bench.rows import DecisionRow, Report
from emoe.core.schedule.cluster import Cluster, WorkerReport
from emoe.core.schedule.costs import StepCosts
from emoe.core.schedule.decisions import DecisionKind, DecisionLog
from emoe.core.schedule.desk import Desk
from emoe.core.schedule.policies import make_policy
from emoe.core.schedule.request import QueuedRequest
from emoe.core.tasks import BUILTIN_TASKS

COSTS = StepCosts(base_seconds=0.005, prompt_token_seconds=3e-5, sequence_seconds=5e-4)
REPORT_EVERY = 10
"""Decisions between two reports of workers with another coverage; each worker sends about one a second."""
MAX_DECISIONS_KEPT = 4096
MAX_QUEUED = 10**7
FILL_SECONDS = 0.005
"""Between two arrivals until all rows are taken."""
BLOCK = 64
"""Turns between two looks at whether the queue is as long as it should be; their requests are made before."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    num_queued: int
    num_workers: int
    num_running: int = 32
    """On each worker."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecisionSettings:
    policies: tuple[str, ...]
    loads: tuple[Load, ...]
    decisions: int = 20_000
    seed: int = 0


def bench_decisions(settings: DecisionSettings, *, say: Callable[[str], None]) -> Report:
    machine = describe_machine(threads=1)
    rows = []
    for load in settings.loads:
        for policy in settings.policies:
            say(f"{policy}: {load.num_queued} queued, {load.num_workers} workers, {load.num_running} running on each")
            rows.append(_measure(policy, load, settings))
    return Report(
        benchmark="decisions",
        model="made-up requests",
        family=f"{len(settings.policies)} policies",
        machine=machine,
        settings={"decisions": settings.decisions, "seed": settings.seed},
        rows=tuple(rows),
    )


def _measure(policy: str, load: Load, settings: DecisionSettings) -> DecisionRow:
    bytes_per_queued = _bytes_per_queued(policy, load, settings.seed)
    flow = Flow(policy, load, seed=settings.seed)
    flow.fill()
    for number in range(min(settings.decisions, 1000)):
        if number % BLOCK == 0:
            flow.fill()
        flow.turn()
    gc.collect()
    wall, processor = np.zeros(settings.decisions), np.zeros(settings.decisions)
    num_admitted = num_running = 0
    for number in range(settings.decisions):
        if number % BLOCK == 0:
            flow.fill()
        began, began_processor = time.perf_counter(), time.thread_time()
        num_admitted += flow.turn()
        wall[number] = time.perf_counter() - began
        processor[number] = time.thread_time() - began_processor
        num_running += flow.num_running
    return DecisionRow(
        policy=policy,
        num_queued=load.num_queued,
        num_workers=load.num_workers,
        num_running=round(num_running / settings.decisions / load.num_workers),
        decision_mean_seconds=float(wall.sum()) / max(1, num_admitted),
        decision_p50_seconds=float(np.quantile(wall, 0.5)),
        decision_p99_seconds=float(np.quantile(wall, 0.99)),
        processor_mean_seconds=float(processor.sum()) / max(1, num_admitted),
        processor_p99_seconds=float(np.quantile(processor, 0.99)),
        bytes_per_queued=bytes_per_queued,
    )


def _bytes_per_queued(policy: str, load: Load, seed: int) -> float:
    flow = Flow(policy, dataclasses.replace(load, num_queued=0), seed=seed)
    flow.fill()
    tracemalloc.start()
    try:
        flow.fill(load.num_queued)
        return tracemalloc.get_traced_memory()[0] / load.num_queued
    finally:
        tracemalloc.stop()


class Flow:
    """A desk under a steady load. Time passes as the workers would take it."""

    def __init__(self, policy: str, load: Load, *, seed: int) -> None:
        self._load = load
        self._random = random.Random(seed)
        self._cluster = Cluster()
        self._desk = Desk(
            policy=make_policy(policy),
            cluster=self._cluster,
            max_requests=MAX_QUEUED,
            max_bytes=10**12,
            decisions=DecisionLog(max_decisions=MAX_DECISIONS_KEPT),
        )
        self._requests = self._draw()
        self._coming: collections.deque[QueuedRequest] = collections.deque()
        self._running: list[tuple[QueuedRequest, float]] = []
        """With the time of its first token."""
        self._now = 0.0
        self._num_turns = 0
        self._is_full = False
        """Whether the rows were taken once, as far as the policy would."""
        # A hundred tokens a request, of which each step makes one for every sequence of a worker.
        decoding = COSTS.step_seconds(num_prompt_tokens=0, num_decoding=load.num_running, num_context_tokens=0)
        self._step_seconds = decoding
        self._turn_seconds = 100 * decoding / (load.num_running * load.num_workers)
        for number in range(load.num_workers):
            self._report(number, load.num_running)

    @property
    def num_waiting(self) -> int:
        return self._desk.num_waiting

    @property
    def num_running(self) -> int:
        return len(self._running)

    def fill(self, num_queued: int | None = None) -> None:
        """Rows first, then the queue to its length; all that runs tells of its progress, as it does every few tokens;
        the next turns' requests are drawn."""
        full = self._load.num_workers * self._load.num_running
        wanted = self._load.num_queued if num_queued is None else num_queued
        while not self._is_full or self._desk.num_waiting < wanted:
            self._desk.arrive(next(self._requests), self._now)
            if not self._is_full:
                self._admit()
                self._now += max(FILL_SECONDS, self._turn_seconds)
                self._is_full = len(self._running) >= full or self._desk.num_waiting > wanted + full
        for request, began_seconds in self._running:
            self._tell_progress(request, began_seconds)
        now = self._now
        while len(self._coming) < BLOCK:
            self._now += self._turn_seconds
            self._coming.append(next(self._requests))
        self._now = now

    def turn(self) -> int:
        """A request tells of progress, one ends, one arrives, now and then a worker's plan changes; then all that may
        start is let in -> how many."""
        self._num_turns += 1
        self._tell_progress(*self._random.choice(self._running))
        place = self._random.randrange(len(self._running))
        self._running[place], self._running[-1] = self._running[-1], self._running[place]
        self._desk.end(self._running.pop()[0].request_id, self._now, DecisionKind.DONE)
        self._desk.arrive(self._coming.popleft(), self._now)
        if self._num_turns % REPORT_EVERY == 0:
            self._report(self._num_turns // REPORT_EVERY % self._load.num_workers, None)
        self._now += self._turn_seconds
        return len(self._admit())

    def _tell_progress(self, request: QueuedRequest, began_seconds: float) -> None:
        num_tokens = 1 + int((self._now - began_seconds) / self._step_seconds)
        self._desk.progressed(request.request_id, num_tokens, self._now)

    def _admit(self) -> Sequence[QueuedRequest]:
        admissions: Sequence[QueuedRequest] = [one.request for one in self._desk.admit(self._now)]
        for request in admissions:
            self._desk.first_token(request.request_id, self._now)
            self._running.append((request, self._now))
        return admissions

    def _report(self, number: int, free_sequences: int | None) -> None:
        worker_id = f"worker-{number}"
        if free_sequences is None:
            free_sequences = round(float(self._cluster.free_sequences[self._cluster.worker_ids.index(worker_id)]))
        coverage = {task: self._random.uniform(0.3, 0.9) for task in BUILTIN_TASKS}
        self._cluster.update(
            WorkerReport(
                worker_id=worker_id,
                free_sequences=free_sequences,
                max_tokens_per_sequence=100_000,
                costs=COSTS,
                coverage=coverage,
            )
        )

    def _draw(self) -> Iterator[QueuedRequest]:
        draw, number = self._random, 0
        while True:
            number += 1
            yield QueuedRequest(
                request_id=f"request-{number}",
                task=BUILTIN_TASKS[number % len(BUILTIN_TASKS)],
                arrived_seconds=self._now,
                num_prompt_tokens=max(1, round(draw.lognormvariate(6, 1))),
                num_expected_tokens=100,
                max_tokens=512,
                ttft_seconds=draw.choice((1.0, 5.0, 30.0, 120.0)),
                tpot_seconds=0.1,
                size_bytes=2000,
            )
