"""`emoe bench schedule --users N`: a day of many users on many workers, to see how the scheduler's own time and memory
grow.

Requests come as a stream and are never held together: a Poisson process whose rate follows the hours of the day, with
lengths and tasks drawn from a trace's rows. So that the workers have something to do, costs are slowed, and targets
with them, until the busiest hour takes the wanted share of what they can serve.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from emoe.bench.schedule_run import capacity_rps
from emoe.bench.schedule_slos import slo_of
from emoe.bench.schedule_trace import Workload
from emoe.bench.simulate import bounds_of, meets
from emoe.bench.simulate_events import Job, Simulation, SimulationOptions
from emoe.core.schedule.costs import StepCosts
from emoe.core.schedule.policies import make_policy
from emoe.core.slo import Slo

HOURLY_SHAPE = (
    985, 838, 893, 834, 849, 868, 912, 1041, 1192, 1351, 1321, 1284,
    1245, 1260, 1245, 1229, 1281, 1267, 1183, 1443, 1709, 1646, 1491, 1248,
)  # fmt: skip
"""Requests a second by hour of the day: means over ServeGen's 14 days of m-small (Xiang et al., 2025)."""
DAY_SECONDS = 86_400.0
HOUR_SECONDS = 3_600.0
SAY_SECONDS = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleSettings:
    policy: str
    num_users: int
    requests_a_user: float
    """In a day."""
    hours: float
    mark_hours: tuple[float, ...]
    busy_ratio: float
    """Of what the workers can serve at most, in the busiest hour."""
    options: SimulationOptions
    placement: str | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleRow:
    """How it stands after so many hours. Decision times are of the latest 100,000, memory is the whole process's."""

    policy: str
    users: int
    workers: int
    hours: float
    num_requests: int
    num_waiting: int
    num_running: int
    attainment: float
    decision_p50_seconds: float
    decision_p99_seconds: float
    memory_bytes: int
    cpu_seconds: float


def bench_scale(
    workload: Workload, slos: Mapping[str, Slo], settings: ScaleSettings, *, say: Callable[[str], None]
) -> Iterator[ScaleRow]:
    """A row a mark, as soon as it is reached."""
    options = settings.options
    mean_rps = settings.num_users * settings.requests_a_user / DAY_SECONDS
    each_rps = capacity_rps(workload, options.costs, num_rows=options.num_rows)
    peak_rps = mean_rps * max(HOURLY_SHAPE) / statistics.fmean(HOURLY_SHAPE)
    slower = settings.busy_ratio * options.num_workers * each_rps / peak_rps
    say(f"{mean_rps:.1f} requests/s on average, {peak_rps:.1f} at most; costs and targets times {slower:.2f}")
    options = dataclasses.replace(options, costs=slowed(options.costs, slower))
    targets = {task: _slowed_slo(slo, slower) for task, slo in slos.items()}
    return _Day(workload, targets, dataclasses.replace(settings, options=options), mean_rps, say).rows()


def slowed(costs: StepCosts, factor: float) -> StepCosts:
    seconds = {field.name: getattr(costs, field.name) * factor for field in dataclasses.fields(costs)}
    return StepCosts(**{**seconds, "step_tokens": costs.step_tokens})


def _slowed_slo(slo: Slo, factor: float) -> Slo:
    targets = dataclasses.asdict(slo)
    return Slo(**{name: None if value is None else value * factor for name, value in targets.items()})


def draw_jobs(workload: Workload, *, mean_rps: float, seconds: float, seed: int) -> Iterator[Job]:
    """By thinning (Lewis and Shedler, 1979): arrivals at the highest rate, each kept with the hour's share of it."""
    draw = random.Random(seed)
    rows = list(zip(workload.tasks, workload.prompt_tokens, workload.answer_tokens, strict=True))
    most = max(HOURLY_SHAPE)
    peak_rps = mean_rps * most / statistics.fmean(HOURLY_SHAPE)
    now = 0.0
    for number in itertools.count():
        now += draw.expovariate(peak_rps)
        while draw.random() * most > HOURLY_SHAPE[int(now % DAY_SECONDS // HOUR_SECONDS)]:
            now += draw.expovariate(peak_rps)
        if now >= seconds:
            return
        yield Job(number, now, *rows[draw.randrange(len(rows))])


class _Day:
    def __init__(
        self,
        workload: Workload,
        slos: Mapping[str, Slo],
        settings: ScaleSettings,
        mean_rps: float,
        say: Callable[[str], None],
    ) -> None:
        self._settings, self._slos, self._say = settings, slos, say
        policy = make_policy(settings.policy, placement=settings.placement)
        self._simulation = Simulation(bounds_of(workload), policy, slos, settings.options, self._record)
        seconds = settings.hours * HOUR_SECONDS
        self._jobs = draw_jobs(workload, mean_rps=mean_rps, seconds=seconds, seed=settings.seed)
        self._num_sent = self._num_ended = self._num_met = 0
        self._began = time.process_time()
        self._said = time.monotonic()

    def rows(self) -> Iterator[ScaleRow]:
        """The stream is cut at the marks: what runs then goes on in the next part."""
        for hours in self._settings.mark_hours:
            self._simulation.run_until(self._jobs_until(hours * HOUR_SECONDS), hours * HOUR_SECONDS)
            yield self._row(hours)

    def _jobs_until(self, seconds: float) -> Iterator[Job]:
        for job in self._jobs:
            if job.arrived_seconds >= seconds:
                self._jobs = itertools.chain((job,), self._jobs)
                return
            self._num_sent += 1
            if self._num_sent % 256 == 0 and (now := time.monotonic()) - self._said >= SAY_SECONDS:
                self._said = now
                self._say(
                    f"{job.arrived_seconds / HOUR_SECONDS:.1f} h: {self._num_sent} requests, "
                    f"{self._simulation.num_running} run, {self._simulation.num_waiting} wait"
                )
            yield job

    def _record(self, job: Job) -> None:
        self._num_ended += 1
        self._num_met += meets(job, slo_of(self._slos, job.task))

    def _row(self, hours: float) -> ScaleRow:
        decisions = np.asarray(self._simulation.decision_seconds)
        p50, p99 = np.percentile(decisions, [50, 99]) if len(decisions) else (0.0, 0.0)
        return ScaleRow(
            policy=self._settings.policy,
            users=self._settings.num_users,
            workers=self._settings.options.num_workers,
            hours=hours,
            num_requests=self._num_sent,
            num_waiting=self._simulation.num_waiting,
            num_running=self._simulation.num_running,
            attainment=self._num_met / max(1, self._num_ended),
            decision_p50_seconds=float(p50),
            decision_p99_seconds=float(p99),
            memory_bytes=resident_bytes(),
            cpu_seconds=time.process_time() - self._began,
        )


def resident_bytes() -> int:
    """Of this process."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
