"""One workload through the simulator, with what became of each request kept."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping

from emoe.bench.schedule_slos import slo_of
from emoe.bench.schedule_trace import Workload
from emoe.bench.simulate_events import Job, JobBounds, Simulation, SimulationOptions
from emoe.core.schedule.policy import AdmissionPolicy
from emoe.core.slo import Slo

__all__ = ["Outcome", "SimulationOptions", "bounds_of", "iterate_jobs", "meets", "simulate"]


@dataclasses.dataclass(kw_only=True)
class Outcome:
    """Of each request, in the workload's order: NaN where it never came to that. `num_ends`: how often it ended.
    `is_cut`: more were missed than allowed, and the rest was not simulated."""

    first_token_seconds: list[float]
    end_seconds: list[float]
    coverage: list[float]
    is_refused: list[bool]
    num_ends: list[int]
    decision_seconds: list[float] = dataclasses.field(default_factory=list)
    cpu_seconds: float = 0.0
    num_steps: int = 0
    num_missed: int = 0
    is_cut: bool = False

    def record(self, job: Job) -> None:
        number = job.number
        self.first_token_seconds[number] = job.first_token_seconds
        self.end_seconds[number] = job.end_seconds
        self.coverage[number] = job.coverage
        self.is_refused[number] = job.is_refused
        self.num_ends[number] += 1


class _TooManyMissedError(Exception):
    pass


def simulate(
    workload: Workload,
    policy: AdmissionPolicy,
    slos: Mapping[str, Slo],
    options: SimulationOptions,
    *,
    max_missed: int | None = None,
) -> Outcome:
    """Until every request has ended, or more than `max_missed` were refused or late."""
    began = time.process_time()
    num = len(workload)
    outcome = Outcome(
        first_token_seconds=[math.nan] * num,
        end_seconds=[math.nan] * num,
        coverage=[math.nan] * num,
        is_refused=[False] * num,
        num_ends=[0] * num,
    )
    targets = {task: slo_of(slos, task) for task in set(workload.tasks)}

    def record(job: Job) -> None:
        outcome.record(job)
        outcome.num_missed += not meets(job, targets[job.task])
        if max_missed is not None and outcome.num_missed > max_missed:
            raise _TooManyMissedError

    simulation = Simulation(bounds_of(workload), policy, slos, options, record)
    try:
        simulation.run(iterate_jobs(workload))
    except _TooManyMissedError:
        outcome.is_cut = True
    outcome.decision_seconds = list(simulation.decision_seconds)
    outcome.num_steps = simulation.num_steps
    outcome.cpu_seconds = time.process_time() - began
    return outcome


def meets(job: Job, slo: Slo) -> bool:
    tpot = (job.end_seconds - job.first_token_seconds) / max(1, job.answer_tokens - 1)
    ttft, end_to_end = job.first_token_seconds - job.arrived_seconds, job.end_seconds - job.arrived_seconds
    taken = (ttft, slo.ttft_seconds), (tpot, slo.tpot_seconds), (end_to_end, slo.end_to_end_seconds)
    return not job.is_refused and all(most is None or seconds <= most for seconds, most in taken)


def bounds_of(workload: Workload) -> JobBounds:
    return JobBounds(
        tasks=frozenset(workload.tasks),
        prompt_tokens=max(workload.prompt_tokens, default=1),
        answer_tokens=max(workload.answer_tokens, default=1),
    )


def iterate_jobs(workload: Workload) -> Iterator[Job]:
    columns = workload.arrived_seconds, workload.tasks, workload.prompt_tokens, workload.answer_tokens
    return (Job(number, *row) for number, row in enumerate(zip(*columns, strict=True)))
