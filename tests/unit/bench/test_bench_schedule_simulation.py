"""The simulator as a whole: nothing is lost, nothing is random, and what queueing theory knows it finds."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest

from emoe.bench.schedule_rows import attains, figure
from emoe.bench.schedule_run import ScheduleSettings, bench_schedule, capacity_rps
from emoe.bench.schedule_scale import ScaleSettings, bench_scale, draw_jobs
from emoe.bench.schedule_trace import Workload
from emoe.bench.simulate import Outcome, SimulationOptions, iterate_jobs, meets, simulate
from emoe.bench.simulate_residency import ResidencyModel
from emoe.core.schedule.costs import StepCosts
from emoe.core.schedule.policies import POLICIES, make_policy
from emoe.core.slo import Slo

SLOS = {
    "chat": Slo(ttft_seconds=1.0, tpot_seconds=0.1),
    "code": Slo(ttft_seconds=0.3, tpot_seconds=0.1),
    "classification": Slo(end_to_end_seconds=1.0),
}
COSTS = StepCosts(
    base_seconds=0.004, prompt_token_seconds=3e-5, sequence_seconds=5e-4, context_token_seconds=1e-7, step_tokens=512
)
OPTIONS = SimulationOptions(num_workers=3, num_rows=4, costs=COSTS, front_seconds=0.002)


def draw_workload(num: int, rate_rps: float, *, seed: int = 1) -> Workload:
    draw, now, arrived = random.Random(seed), 0.0, []
    for _ in range(num):
        arrived.append(now)
        now += draw.expovariate(rate_rps)
    return Workload(
        name="drawn",
        arrived_seconds=arrived,
        prompt_tokens=[draw.randint(1, 3000) for _ in range(num)],
        answer_tokens=[draw.choice((1, 5, 80)) for _ in range(num)],
        tasks=[draw.choice(tuple(SLOS)) for _ in range(num)],
        span_seconds=now,
    )


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("load_rps", [5.0, 80.0], ids=["light", "overload"])
def test_every_request_ends_in_exactly_one_way(policy: str, load_rps: float) -> None:
    workload = draw_workload(400, load_rps)
    options = SimulationOptions(num_workers=3, num_rows=4, costs=COSTS, max_queued=100)
    outcome = simulate(workload, make_policy(policy), SLOS, options)
    assert outcome.num_ends == [1] * 400
    assert any(outcome.is_refused) == (load_rps > 50)
    for number, refused in enumerate(outcome.is_refused):
        first, end = outcome.first_token_seconds[number], outcome.end_seconds[number]
        assert math.isnan(end) if refused else workload.arrived_seconds[number] < first <= end


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_same_requests_have_the_same_fate_again(policy: str) -> None:
    workload = draw_workload(300, 20.0)
    first, again = (simulate(workload, make_policy(policy), SLOS, OPTIONS) for _ in range(2))
    assert (first.first_token_seconds, first.end_seconds) == (again.first_token_seconds, again.end_seconds)


def test_one_worker_of_batch_one_waits_as_a_queue_with_fixed_service_does() -> None:
    """M/D/1: the mean wait is rho / (2 (1 - rho)) services (Pollaczek and Khinchine)."""
    num, service, load = 16_000, 0.1, 0.5
    draw, now, arrived = random.Random(3), 0.0, []
    for _ in range(num):
        now += draw.expovariate(load / service)
        arrived.append(now)
    workload = Workload(
        name="md1",
        arrived_seconds=arrived,
        prompt_tokens=[10] * num,
        answer_tokens=[1] * num,
        tasks=["chat"] * num,
        span_seconds=now,
    )
    costs = StepCosts(base_seconds=service, prompt_token_seconds=0.0, sequence_seconds=0.0)
    options = SimulationOptions(num_workers=1, num_rows=1, costs=costs, max_queued=num)
    outcome = simulate(workload, make_policy("fifo"), {}, options)
    waits = [
        first - at - service for first, at in zip(outcome.first_token_seconds, workload.arrived_seconds, strict=True)
    ]
    assert statistics.fmean(waits) == pytest.approx(service * load / (2 * (1 - load)), rel=0.05)


def test_goodput_of_a_queue_with_fixed_service_is_where_theory_has_it() -> None:
    """Requests at even distances never wait below one a service, and ever longer above it."""
    num, service = 400, 0.1
    workload = Workload(
        name="even",
        arrived_seconds=[float(number) for number in range(num)],
        prompt_tokens=[10] * num,
        answer_tokens=[1] * num,
        tasks=["chat"] * num,
        span_seconds=float(num),
    )
    costs = StepCosts(base_seconds=service, prompt_token_seconds=0.0, sequence_seconds=0.0)
    settings = ScheduleSettings(
        policies=("fifo",),
        options=SimulationOptions(num_workers=1, num_rows=1, costs=costs),
        finds_goodput=True,
        precision=0.005,
    )
    (row,) = bench_schedule([workload], {"chat": Slo(ttft_seconds=0.11)}, settings, say=lambda _: None)
    assert row.goodput_rps == pytest.approx(1 / service, rel=0.01)
    assert row.attainment >= 0.99


def test_rows_of_given_loads_are_medians_over_seeds() -> None:
    workload = draw_workload(200, 10.0)
    settings = ScheduleSettings(policies=("fifo", "edf"), options=OPTIONS, loads_rps=(5.0, 60.0), seeds=(0, 1, 2))
    rows = list(bench_schedule([workload], SLOS, settings, say=lambda _: None))
    assert [(row.policy, round(row.load_rps)) for row in rows] == [("fifo", 5), ("fifo", 60), ("edf", 5), ("edf", 60)]
    for row in rows:
        assert row.attainment == statistics.median(attainment for _, attainment in row.samples)
    assert rows[0].attainment > rows[1].attainment


def test_what_is_refused_or_late_is_missed() -> None:
    workload = Workload(
        name="three",
        arrived_seconds=[0.0, 0.0, 0.0],
        prompt_tokens=[1, 1, 1],
        answer_tokens=[3, 3, 3],
        tasks=["chat", "chat", "chat"],
        span_seconds=3.0,
    )
    outcome = Outcome(
        first_token_seconds=[0.5, 1.5, math.nan],
        end_seconds=[0.6, 1.6, math.nan],
        coverage=[math.nan] * 3,
        is_refused=[False, False, True],
        num_ends=[1, 1, 1],
    )
    figures = figure(workload, outcome, SLOS)
    assert figures.attainment == pytest.approx(1 / 3)
    assert figures.goodput_rps == pytest.approx(1 / 3)
    assert figures.num_refused == 1


def test_a_simulation_is_cut_when_more_are_missed_than_allowed() -> None:
    workload = draw_workload(400, 80.0)
    whole = simulate(workload, make_policy("fifo"), SLOS, OPTIONS)
    assert whole.num_missed > 100
    assert not simulate(workload, make_policy("fifo"), SLOS, OPTIONS, max_missed=whole.num_missed).is_cut
    cut = simulate(workload, make_policy("fifo"), SLOS, OPTIONS, max_missed=50)
    assert cut.is_cut
    assert cut.num_missed == 51
    assert sum(cut.num_ends) < 400


def test_one_job_and_many_are_judged_alike() -> None:
    workload = draw_workload(200, 30.0)
    jobs = list(iterate_jobs(workload))
    draw = random.Random(5)
    for job in jobs:
        job.first_token_seconds = job.arrived_seconds + draw.uniform(0, 2)
        job.end_seconds = job.first_token_seconds + draw.uniform(0, 0.2) * job.answer_tokens
    first, end = np.array([job.first_token_seconds for job in jobs]), np.array([job.end_seconds for job in jobs])
    arrived = np.array(workload.arrived_seconds)
    tpot = (end - first) / np.maximum(np.array(workload.answer_tokens) - 1, 1)
    together = attains(workload.tasks, first - arrived, tpot, end - arrived, SLOS)
    assert together.tolist() == [meets(job, SLOS[job.task]) for job in jobs]
    assert 0 < together.sum() < len(jobs)


def test_residents_that_follow_what_a_worker_is_sent_are_worth_more_when_tasks_keep_together() -> None:
    costs = StepCosts(base_seconds=0.004, prompt_token_seconds=3e-5, sequence_seconds=5e-4, missed_token_seconds=1e-5)
    options = SimulationOptions(num_workers=3, num_rows=4, costs=costs, residency=ResidencyModel(shared=0.5, alone=0.9))
    workload = draw_workload(1200, 8.0)
    apart, together = (
        figure(workload, simulate(workload, make_policy("fifo", placement=name), SLOS, options), SLOS)
        for name in ("most-free", "residency")
    )
    assert apart.coverage is not None
    assert together.coverage is not None
    assert 0.5 < apart.coverage < together.coverage < 0.9


def test_a_day_of_users_is_marked_as_it_passes_and_holds_no_request_that_has_ended() -> None:
    settings = ScaleSettings(
        policy="fifo",
        num_users=2000,
        requests_a_user=5.0,
        hours=3.0,
        mark_hours=(1.0, 3.0),
        busy_ratio=0.5,
        options=OPTIONS,
    )
    rows = list(bench_scale(draw_workload(300, 5.0), SLOS, settings, say=lambda _: None))
    assert [row.hours for row in rows] == [1.0, 3.0]
    assert 0 < rows[0].num_requests < rows[1].num_requests
    assert rows[1].num_running <= 3 * 4
    assert rows[1].attainment > 0.5


def test_arrivals_of_a_day_follow_its_hours() -> None:
    jobs = list(draw_jobs(draw_workload(10, 1.0), mean_rps=0.5, seconds=86_400.0, seed=2))
    assert len(jobs) == pytest.approx(0.5 * 86_400, rel=0.03)
    by_hour = [0] * 24
    for job in jobs:
        by_hour[int(job.arrived_seconds // 3600)] += 1
    assert by_hour[20] > 1.7 * by_hour[3]


def test_a_worker_serves_no_more_than_its_bound() -> None:
    workload = draw_workload(600, 200.0)
    options = SimulationOptions(num_workers=1, num_rows=4, costs=COSTS, max_queued=1000)
    outcome = simulate(workload, make_policy("fifo"), SLOS, options)
    served_rps = 600 / max(outcome.end_seconds)
    bound = capacity_rps(workload, COSTS, num_rows=4)
    assert 0.8 * bound < served_rps <= 1.05 * bound
