"""The scheduler of the service against simulated workers: discrete events, the very desk, policies and cluster.

The desk learns what the service's would: arrivals, first tokens, ends, how far answers are every now and then, and what
workers report. It does not know an answer's length; its estimate is the mean of the task's answers that have ended.
Jobs come as a stream and are forgotten when they have ended. Same jobs, same options, same result, but for the time
that decisions took.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
import time
from collections.abc import Callable, Iterator, Mapping

from emoe.bench.schedule_slos import slo_of
from emoe.bench.simulate_residency import FollowingResidency, ResidencyModel
from emoe.bench.simulate_worker import IDLE, SimulatedWorker
from emoe.core.length_sketch import LengthSketch
from emoe.core.schedule.cluster import Cluster, WorkerReport
from emoe.core.schedule.costs import StepCosts
from emoe.core.schedule.decisions import DecisionKind
from emoe.core.schedule.desk import LOOK_SECONDS, Desk
from emoe.core.schedule.policy import AdmissionPolicy
from emoe.core.schedule.request import QueuedRequest
from emoe.core.slo import Slo

FIRST_ANSWER_TOKENS = 128
"""Expected of a task of which no answer has ended."""
PROGRESS_SECONDS = 1.0
"""How often a worker that writes says how far its answers are."""
MAX_DECISIONS = 100_000
"""The latest of which it is kept how long they took."""


class Job:
    """A request on its way; times are NaN until they are there."""

    __slots__ = (
        "answer_tokens",
        "arrived_seconds",
        "coverage",
        "end_seconds",
        "first_token_seconds",
        "is_refused",
        "number",
        "prompt_tokens",
        "request_id",
        "task",
    )

    def __init__(self, number: int, arrived_seconds: float, task: str, prompt_tokens: int, answer_tokens: int) -> None:
        self.number = number
        self.request_id = str(number)
        self.arrived_seconds = arrived_seconds
        self.task = task
        self.prompt_tokens = prompt_tokens
        self.answer_tokens = answer_tokens
        self.first_token_seconds = self.end_seconds = self.coverage = float("nan")
        self.is_refused = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulationOptions:
    """`front_seconds`: what the services add to a first token, from the scheduler's decision to the engine and back."""

    num_workers: int
    num_rows: int
    """Sequences that a worker runs at once."""
    costs: StepCosts
    front_seconds: float = 0.0
    max_queued: int = 4096
    residency: ResidencyModel | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobBounds:
    """Of all jobs to come: what clients state as the longest answer, and workers are made to hold."""

    tasks: frozenset[str]
    prompt_tokens: int
    answer_tokens: int


class Simulation:
    """`record` is given each job once, when it has ended."""

    def __init__(
        self,
        bounds: JobBounds,
        policy: AdmissionPolicy,
        slos: Mapping[str, Slo],
        options: SimulationOptions,
        record: Callable[[Job], None],
    ) -> None:
        self._options = options
        self._record = record
        self._slos = {task: slo_of(slos, task) for task in bounds.tasks}
        self._max_tokens = bounds.answer_tokens
        self._context = bounds.prompt_tokens + bounds.answer_tokens
        self._lengths = {task: LengthSketch() for task in bounds.tasks}
        self._cluster = Cluster()
        self._desk = Desk(policy=policy, cluster=self._cluster, max_requests=options.max_queued, max_bytes=1 << 40)
        self._jobs: dict[int, Job] = {}
        self._names = [f"worker-{number}" for number in range(options.num_workers)]
        self._places = {name: place for place, name in enumerate(self._names)}
        self._running = [0] * options.num_workers
        self._told_seconds = [0.0] * options.num_workers
        self._residency: list[FollowingResidency] = []
        if options.residency is not None:
            self._residency = [FollowingResidency(options.residency, bounds.tasks) for _ in self._names]
        self._replanned: list[int] = []
        self._events: list[tuple[float, int]] = []
        """A heap of (time, worker); what a worker has moved since is skipped when it comes up."""
        self._look_seconds = IDLE
        self.workers = [SimulatedWorker(options.costs, num_rows=options.num_rows) for _ in self._names]
        self.decision_seconds: collections.deque[float] = collections.deque(maxlen=MAX_DECISIONS)
        """Wall time of each call into the desk that may admit."""
        for place in range(options.num_workers):
            self._report(place)

    @property
    def num_waiting(self) -> int:
        return self._desk.num_waiting

    @property
    def num_running(self) -> int:
        return self._desk.num_running

    @property
    def num_steps(self) -> int:
        return sum(worker.num_steps for worker in self.workers)

    def run(self, jobs: Iterator[Job]) -> None:
        """Until every one of them has ended; they come in order of arrival."""
        self.run_until(jobs, IDLE)

    def run_until(self, jobs: Iterator[Job], seconds: float) -> None:
        """All of `jobs`, and whatever else happens before `seconds`."""
        events, workers, pop = self._events, self.workers, heapq.heappop
        job = next(jobs, None)
        arrival = job.arrived_seconds if job is not None else IDLE
        while True:
            at_seconds = events[0][0] if events else IDLE
            if job is not None and arrival <= at_seconds and arrival <= self._look_seconds:
                self._arrive(job, arrival)
                job = next(jobs, None)
                arrival = job.arrived_seconds if job is not None else IDLE
            elif min(at_seconds, self._look_seconds) >= seconds:
                return
            elif at_seconds <= self._look_seconds:
                place = pop(events)[1]
                if workers[place].until_seconds == at_seconds:
                    self._finish(place, at_seconds)
            else:
                self._admit(self._look_seconds, time.perf_counter())

    def _arrive(self, job: Job, now: float) -> None:
        request = self._request(job)
        self._jobs[job.number] = job
        began = time.perf_counter()
        for refused in self._desk.arrive(request, now):
            loser = self._jobs.pop(int(refused.request_id))
            loser.is_refused = True
            self._record(loser)
        self._admit(now, began)

    def _request(self, job: Job) -> QueuedRequest:
        slo, lengths = self._slos[job.task], self._lengths[job.task]
        return QueuedRequest(
            request_id=job.request_id,
            task=job.task,
            arrived_seconds=job.arrived_seconds,
            num_prompt_tokens=job.prompt_tokens,
            num_expected_tokens=max(1, round(lengths.mean)) if lengths.weight else FIRST_ANSWER_TOKENS,
            max_tokens=self._max_tokens,
            ttft_seconds=slo.ttft_seconds,
            tpot_seconds=slo.tpot_seconds,
            end_to_end_seconds=slo.end_to_end_seconds,
            expected_rest=lengths.expected_remaining if lengths.weight else None,
        )

    def _admit(self, now: float, began: float) -> None:
        admissions = self._desk.admit(now)
        self.decision_seconds.append(time.perf_counter() - began)
        for admission in admissions:
            self._send(self._jobs[int(admission.request.request_id)], self._places[admission.worker_id], now)
        if self._replanned:
            for place in self._replanned:
                self._report(place)
            self._replanned.clear()
        may_look = self._desk.num_waiting and self._cluster.num_free_sequences > 0
        self._look_seconds = now + LOOK_SECONDS if may_look else IDLE

    def _send(self, job: Job, place: int, now: float) -> None:
        worker = self.workers[place]
        self._running[place] += 1
        moved = worker.give(
            job.number,
            prompt_tokens=job.prompt_tokens,
            answer_tokens=job.answer_tokens,
            at_seconds=now + self._options.front_seconds,
            miss_seconds=self._missed(job, place) if self._residency else 0.0,
        )
        if moved:
            heapq.heappush(self._events, (worker.until_seconds, place))

    def _missed(self, job: Job, place: int) -> float:
        """Seconds that each of its tokens waits for experts, by the coverage that it finds when it starts."""
        residency = self._residency[place]
        job.coverage = residency.coverage[job.task]
        if residency.sent(job.task):
            self._replanned.append(place)
        return (1.0 - job.coverage) * self._options.costs.missed_token_seconds

    def _finish(self, place: int, now: float) -> None:
        worker, desk, jobs = self.workers[place], self._desk, self._jobs
        worker.finish()
        if worker.until_seconds < IDLE:
            heapq.heappush(self._events, (worker.until_seconds, place))
        for number in worker.wrote_first:
            job = jobs[number]
            job.first_token_seconds = now
            desk.first_token(job.request_id, now)
        for number in worker.ended:
            job = jobs.pop(number)
            job.end_seconds = now
            self._lengths[job.task].observe(job.answer_tokens)
            desk.end(job.request_id, now, DecisionKind.DONE)
            self._record(job)
        self._running[place] -= len(worker.ended)
        if now - self._told_seconds[place] >= PROGRESS_SECONDS:
            self._tell_progress(place, now)
        if desk.num_waiting and (worker.ended or worker.wrote_first):
            self._admit(now, time.perf_counter())

    def _tell_progress(self, place: int, now: float) -> None:
        self._told_seconds[place] = now
        for number, to_come in self.workers[place].tokens_to_come():
            job = self._jobs[number]
            self._desk.progressed(job.request_id, job.answer_tokens - to_come, now)

    def _report(self, place: int) -> None:
        self._cluster.update(
            WorkerReport(
                worker_id=self._names[place],
                free_sequences=self._options.num_rows - self._running[place],
                max_tokens_per_sequence=self._context,
                costs=self._options.costs,
                coverage=self._residency[place].coverage if self._residency else {},
            )
        )
