"""What a worker is planned for: its running requests as it foretells them, those that follow, and else the last mix."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest

from emoe.core.experts import ExpertGrid, FloatGrid, RoutingRule
from emoe.core.planning import GlobalGreedyPlanner
from emoe.loader.forecast import Forecast
from emoe.loader.news import News
from emoe.loader.planning_loop import build_plan
from emoe.loader.task_mix import TaskMix, TaskReport
from emoe.loader.worker_demand import demand_of, prompt_share
from emoe.loader.workers import Running, WorkerCounters, Workers, WorkerState

GRID = ExpertGrid(num_layers=1, moe_layers=(0,), rule=RoutingRule(num_experts=4, top_k=1), expert_bytes=64)
AS_MANY = WorkerCounters(num_prompt_tokens=50, num_completion_tokens=50)
NO_PROMPTS = WorkerCounters(num_prompt_tokens=0, num_completion_tokens=50)


def tokens(*each: float) -> FloatGrid:
    return np.array([each], dtype=np.float64)


def forecast() -> Forecast:
    """A chat's tokens want expert 0, code's want 1."""
    made = Forecast(GRID)
    made.update({"chat": tokens(1, 0, 0, 0), "code": tokens(0, 1, 0, 0)})
    return made


@contextlib.contextmanager
def mix_of(*, waiting: dict[str, float] | None = None, **task_tokens: float) -> Iterator[TaskMix]:
    mix = TaskMix(planning=News())
    with mix.joined("s") as scheduler:
        mix.update(scheduler, TaskReport(task_tokens=task_tokens, waiting_tokens=waiting or {}, num_prompts=0))
        yield mix


def state(
    running: Running | None,
    *,
    counters: WorkerCounters = AS_MANY,
    resident: FloatGrid | None = None,
    num_slots: int = 2,
) -> WorkerState:
    return WorkerState(
        worker_id="w",
        address="127.0.0.1:1",
        num_slots=num_slots,
        resident=np.zeros(GRID.shape, dtype=np.bool_) if resident is None else resident.astype(np.bool_),
        counters=counters,
        running=running,
    )


def running(*each: float, version: int = 1) -> Running:
    return Running(version=version, num_requests=1, demand=tokens(*each))


IDLE = Running(version=3, num_requests=0, demand=tokens(0, 0, 0, 0))


@pytest.mark.parametrize("foretold", [None, IDLE], ids=["foretells-nothing", "nothing-runs"])
def test_the_mix_of_tasks_alone_is_planned_for_where_nothing_is_foretold(foretold: Running | None) -> None:
    with mix_of(chat=30, code=10) as mix:
        demand = demand_of(state(foretold), mix, forecast().demand)
    np.testing.assert_allclose(demand, tokens(30, 10, 0, 0))


def test_what_waits_is_planned_for_by_a_worker_where_nothing_runs() -> None:
    with mix_of(chat=30, waiting={"code": 10}) as mix:
        demand = demand_of(state(IDLE), mix, forecast().demand)
    np.testing.assert_allclose(demand, tokens(0, 10, 0, 0))


def test_running_requests_come_before_their_task() -> None:
    with mix_of(chat=100) as mix:
        demand = demand_of(state(running(0, 0, 40, 24), counters=NO_PROMPTS), mix, forecast().demand)
    np.testing.assert_allclose(demand, tokens(0, 0, 40, 24))


def test_prompts_that_follow_weigh_as_much_as_the_worker_has_seen_of_them() -> None:
    counters = WorkerCounters(num_prompt_tokens=25, num_completion_tokens=50)
    with mix_of(chat=10, code=30) as mix:
        demand = demand_of(state(running(0, 0, 64, 0), counters=counters), mix, forecast().demand)
    np.testing.assert_allclose(demand, tokens(8, 24, 64, 0))


def test_prompts_that_follow_are_of_the_tasks_that_wait_however_many_do() -> None:
    with mix_of(chat=100, waiting={"code": 100_000}) as mix:
        demand = demand_of(state(running(0, 0, 64, 0)), mix, forecast().demand)
    np.testing.assert_allclose(demand, tokens(0, 64, 64, 0))


def test_long_prompts_weigh_no_more_than_answers() -> None:
    assert prompt_share(WorkerCounters(num_prompt_tokens=4000, num_completion_tokens=100)) == 1.0
    assert prompt_share(WorkerCounters()) == 0.0


def test_a_newcomer_must_be_clearly_better_for_what_runs_than_for_what_a_task_wants() -> None:
    resident = tokens(1, 1, 0, 0)
    better_by_a_fifth = tokens(100, 100, 120, 0)
    for foretold, expected in ((running(*better_by_a_fifth[0]), [0, 1]), (None, [0, 2])):
        plan = build_plan(state(foretold, resident=resident), None, better_by_a_fifth, GlobalGreedyPlanner(), GRID)
        assert np.flatnonzero(plan.wanted[0]).tolist() == expected


def test_a_demand_that_was_told_before_stands_until_another_is() -> None:
    workers = Workers(planning=News())
    with workers.joined(state(running(0, 0, 40, 0, version=1))) as member:
        workers.update(member, state(Running(version=1, num_requests=1, demand=None)))
        assert member.state.running is not None
        np.testing.assert_allclose(member.state.running.demand, tokens(0, 0, 40, 0))
        workers.update(member, state(running(0, 7, 0, 0, version=2)))
        np.testing.assert_allclose(member.state.running.demand, tokens(0, 7, 0, 0))
