"""When the predictor is asked and when a worker gets a plan: decisions over data and a clock that is passed in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emoe.core.experts import BoolGrid, ExpertGrid, FloatGrid, RoutingRule
from emoe.core.planning import GlobalGreedyPlanner
from emoe.core.tasks import BUILTIN_TASKS, UNKNOWN
from emoe.loader.forecast import Forecast
from emoe.loader.news import News
from emoe.loader.planning_loop import (
    MAX_TASKS_ASKED,
    LastAsked,
    Pace,
    PlanningLoop,
    should_ask,
    tasks_to_ask,
)
from emoe.loader.task_mix import Scheduler, TaskMix, TaskReport
from emoe.loader.workers import Member, Running, Workers, WorkerState

GRID = ExpertGrid(num_layers=2, moe_layers=(0, 1), rule=RoutingRule(num_experts=4, top_k=1), expert_bytes=64)
PACE = Pace(refresh_interval_prompts=40, ask_again_seconds=5, apply_deadline_seconds=30)


def favouring(index: int) -> FloatGrid:
    demand = np.full(GRID.shape, 0.1)
    demand[:, index] = 0.7
    return demand


def residents(*indices: int) -> BoolGrid:
    resident = np.zeros(GRID.shape, dtype=np.bool_)
    resident[:, list(indices)] = True
    return resident


def state(worker_id: str = "w", *, num_slots: int = 2, resident: BoolGrid | None = None, epoch: int = 0) -> WorkerState:
    return WorkerState(
        worker_id=worker_id,
        address="127.0.0.1:1",
        num_slots=num_slots,
        resident=residents() if resident is None else resident,
        applied_epoch=epoch,
    )


class Bench:
    """The loop with a clock in hand and a predictor that answers from `per_token`, or not at all."""

    def __init__(self, per_token: Mapping[str, FloatGrid] | None, pace: Pace = PACE) -> None:
        self.now_seconds = 0.0
        self.per_token = per_token
        self.asked: list[frozenset[str]] = []
        news = News()
        self.workers, self.mix = Workers(planning=news), TaskMix(planning=news)
        self.loop = PlanningLoop(
            workers=self.workers,
            mix=self.mix,
            news=news,
            grid=GRID,
            planner=GlobalGreedyPlanner(),
            ask=self.ask,
            pace=pace,
            clock=lambda: self.now_seconds,
        )

    async def ask(self, tasks: frozenset[str]) -> Mapping[str, FloatGrid] | None:
        self.asked.append(tasks)
        if self.per_token is None:
            return None
        return {task: self.per_token.get(task, favouring(0)) for task in tasks}

    async def turn(self) -> None:
        await self.loop.ask_if_due()
        await self.loop.plan_once()

    def report(self, scheduler: Scheduler, *, num_prompts: int, **task_tokens: int) -> None:
        self.mix.update(scheduler, TaskReport(task_tokens=task_tokens, num_prompts=num_prompts))

    def apply(self, member: Member) -> None:
        assert member.plan is not None
        applied = dataclasses.replace(member.state, resident=member.plan.wanted, applied_epoch=member.plan.epoch)
        self.workers.update(member, applied)


def wanted(member: Member) -> list[list[int]]:
    assert member.plan is not None
    return [np.flatnonzero(row).tolist() for row in member.plan.wanted]


async def test_the_first_registration_is_planned_for_at_once() -> None:
    bench = Bench({UNKNOWN: favouring(3)})
    with bench.workers.joined(state()) as member:
        await bench.turn()
        assert wanted(member) == [[3], [3]]


async def test_a_silent_predictor_still_means_a_plan() -> None:
    bench = Bench(None)
    with bench.workers.joined(state(num_slots=5)) as member:
        await bench.turn()
        assert member.plan is not None
        assert int(member.plan.wanted.sum()) == 5
        assert (member.plan.demand == 0.25).all()


async def test_without_a_predictor_residents_stay_where_they_are() -> None:
    bench = Bench(None)
    with bench.workers.joined(state(num_slots=4, resident=residents(1, 3))) as member:
        await bench.turn()
        assert wanted(member) == [[1, 3], [1, 3]]


async def test_the_predictor_is_not_asked_while_nobody_would_be_planned_for() -> None:
    bench = Bench({})
    await bench.turn()
    assert bench.asked == []


async def test_the_predictor_is_asked_often_at_first_then_after_the_interval_of_prompts() -> None:
    bench = Bench({})
    asked_at: list[int] = []
    with bench.workers.joined(state()), bench.mix.joined("s") as scheduler:
        for num_prompts in range(150):
            bench.report(scheduler, code=1, num_prompts=num_prompts)
            num_asked = len(bench.asked)
            await bench.turn()
            asked_at += [num_prompts] * (len(bench.asked) - num_asked)
    assert PACE.refresh_interval_prompts == 40
    assert asked_at == [0, 1, 2, 4, 8, 16, 32, 64, 104, 144]


async def ask_times(bench: Bench, *, until: int, drifts_from: int) -> list[int]:
    """At which prompts the predictor was asked; from `drifts_from` on, each answer wants another expert."""
    asked_at: list[int] = []
    with bench.workers.joined(state()), bench.mix.joined("s") as scheduler:
        for num_prompts in range(until):
            bench.report(scheduler, code=1, num_prompts=num_prompts)
            num_asked = len(bench.asked)
            bench.per_token = {"code": favouring((num_asked + 1) % 4 if num_prompts >= drifts_from else 1)}
            await bench.turn()
            asked_at += [num_prompts] * (len(bench.asked) - num_asked)
    return asked_at


async def test_an_interval_that_adapts_grows_while_answers_stay_the_same() -> None:
    bench = Bench({}, dataclasses.replace(PACE, adapts=True))
    asked_at = await ask_times(bench, until=600, drifts_from=600)
    assert asked_at == [0, 1, 2, 4, 8, 16, 32, 64, 104, 184, 344, 504]


async def test_an_interval_that_adapts_shrinks_when_answers_change() -> None:
    bench = Bench({}, dataclasses.replace(PACE, adapts=True))
    asked_at = await ask_times(bench, until=270, drifts_from=105)
    assert asked_at[8:] == [104, 184, 224, 244, 254, 259, 264, 269]


async def test_a_task_not_foretold_is_asked_for_at_once() -> None:
    bench = Bench({})
    with bench.workers.joined(state()), bench.mix.joined("s") as scheduler:
        await bench.turn()
        bench.report(scheduler, law=1, num_prompts=1)
        await bench.turn()
        assert "law" in bench.asked[1]


async def test_a_new_mix_is_planned_for_from_the_last_prediction() -> None:
    bench = Bench({"code": favouring(1), "math": favouring(2)})
    with bench.workers.joined(state()) as member, bench.mix.joined("s") as scheduler:
        bench.report(scheduler, code=9, math=1, num_prompts=0)
        await bench.turn()
        assert wanted(member) == [[1], [1]]
        bench.apply(member)
        bench.report(scheduler, code=1, math=9, num_prompts=0)
        await bench.turn()
        assert wanted(member) == [[2], [2]]
        assert len(bench.asked) == 1


async def test_no_plan_follows_until_the_last_is_applied() -> None:
    bench = Bench({"code": favouring(1), "math": favouring(2)})
    with bench.workers.joined(state()) as member, bench.mix.joined("s") as scheduler:
        bench.report(scheduler, code=1, num_prompts=0)
        await bench.turn()
        bench.report(scheduler, math=1, num_prompts=1)
        await bench.turn()
        assert wanted(member) == [[1], [1]]
        bench.apply(member)
        await bench.turn()
        assert wanted(member) == [[2], [2]]


async def test_a_worker_that_never_applies_gets_the_next_plan_after_the_deadline() -> None:
    bench = Bench({"code": favouring(1), "math": favouring(2)})
    with bench.workers.joined(state()) as member, bench.mix.joined("s") as scheduler:
        bench.report(scheduler, code=1, num_prompts=0)
        await bench.turn()
        bench.report(scheduler, math=1, num_prompts=1)
        bench.now_seconds = 29
        await bench.turn()
        assert wanted(member) == [[1], [1]]
        bench.now_seconds = 31
        await bench.turn()
        assert wanted(member) == [[2], [2]]


async def test_a_plan_that_would_say_the_same_is_not_sent() -> None:
    bench = Bench({"code": favouring(1), "math": favouring(2)})
    with bench.workers.joined(state()) as member, bench.mix.joined("s") as scheduler:
        bench.report(scheduler, code=9, num_prompts=0)
        await bench.turn()
        bench.apply(member)
        first = member.plan
        bench.report(scheduler, code=9, math=1, num_prompts=0)
        await bench.turn()
        assert member.plan is first


async def test_a_demand_foretold_anew_is_sent_even_if_the_experts_stay() -> None:
    bench = Bench({"code": favouring(1)})
    with bench.workers.joined(state()) as member, bench.mix.joined("s") as scheduler:
        bench.report(scheduler, code=9, num_prompts=0)
        await bench.turn()
        bench.apply(member)
        bench.report(scheduler, code=9, num_prompts=40)
        await bench.turn()
        assert member.plan is not None
        assert member.plan.epoch == 2


async def test_heartbeats_alone_plan_nothing() -> None:
    bench = Bench({"code": favouring(1)})
    with bench.workers.joined(state()) as member:
        await bench.turn()
        bench.apply(member)
        first = member.plan
        bench.workers.update(member, state(resident=residents(3), epoch=1))
        await bench.turn()
        assert member.plan is first


async def test_running_requests_foretold_anew_are_planned_for_once_and_not_while_a_plan_is_in_flight() -> None:
    bench = Bench({"code": favouring(1)})

    def foretell(member: Member, *, version: int, index: int) -> None:
        running = Running(version=version, num_requests=1, demand=64 * favouring(index))
        bench.workers.update(member, dataclasses.replace(member.state, running=running))

    with bench.workers.joined(state()) as member, bench.mix.joined("s") as scheduler:
        bench.report(scheduler, code=1, num_prompts=0)
        await bench.turn()
        foretell(member, version=1, index=2)
        await bench.turn()
        assert wanted(member) == [[1], [1]]
        bench.apply(member)
        await bench.turn()
        assert wanted(member) == [[2], [2]]
        bench.apply(member)
        plan = member.plan
        foretell(member, version=1, index=3)
        await bench.turn()
        assert member.plan is plan
        foretell(member, version=2, index=3)
        await bench.turn()
        assert wanted(member) == [[3], [3]]


async def test_a_worker_with_more_slots_than_before_gets_a_plan_for_them() -> None:
    bench = Bench({})
    with bench.workers.joined(state(num_slots=2)) as member:
        await bench.turn()
        bench.workers.update(member, state(num_slots=6, epoch=1))
        await bench.turn()
        assert member.plan is not None
        assert int(member.plan.wanted.sum()) == 6


async def test_epochs_go_on_from_those_of_an_earlier_loader() -> None:
    bench = Bench({})
    with bench.workers.joined(state(epoch=57)) as member:
        await bench.turn()
        assert member.plan is not None
        assert member.plan.epoch == 58


async def test_a_predictor_that_comes_back_is_heard_after_a_pause() -> None:
    bench = Bench(None)
    with bench.workers.joined(state()) as member:
        await bench.turn()
        bench.apply(member)
        bench.per_token = {UNKNOWN: favouring(3)}
        bench.now_seconds = 4
        await bench.turn()
        assert len(bench.asked) == 1
        bench.now_seconds = 5
        await bench.turn()
        assert wanted(member) == [[3], [3]]


async def test_the_last_demand_stands_when_the_predictor_falls_silent() -> None:
    bench = Bench({"code": favouring(1), "math": favouring(2)})
    with bench.workers.joined(state()) as member, bench.mix.joined("s") as scheduler:
        bench.report(scheduler, code=9, num_prompts=0)
        await bench.turn()
        bench.apply(member)
        bench.per_token = None
        bench.report(scheduler, math=9, num_prompts=40)
        await bench.turn()
        assert wanted(member) == [[2], [2]]


async def test_two_workers_are_planned_for_apart() -> None:
    bench = Bench({UNKNOWN: favouring(2)})
    with bench.workers.joined(state("small")) as small, bench.workers.joined(state("large", num_slots=8)) as large:
        await bench.turn()
        assert wanted(small) == [[2], [2]]
        assert wanted(large) == [[0, 1, 2, 3]] * 2
        bench.apply(small)
        assert large.plan is not None
        assert large.state.applied_epoch == 0


@pytest.mark.parametrize(
    ("last", "new_tasks", "expected"),
    [
        (None, False, True),
        (LastAsked(num_prompts=0, at_seconds=100, answered=True), False, False),
        (LastAsked(num_prompts=0, at_seconds=100, answered=True), True, True),
        (LastAsked(num_prompts=-40, at_seconds=100, answered=True), False, True),
        (LastAsked(num_prompts=-40, at_seconds=100, answered=False), True, False),
        (LastAsked(num_prompts=0, at_seconds=95, answered=False), False, True),
    ],
    ids=["never", "just-now", "new-task", "interval", "pause", "pause-over"],
)
def test_when_to_ask(last: LastAsked | None, new_tasks: bool, expected: bool) -> None:
    assert should_ask(last, num_prompts=0, new_tasks=new_tasks, now_seconds=100, pace=PACE) is expected


@given(tokens=st.dictionaries(st.text("abcdefgh", min_size=1, max_size=3), st.floats(0, 1e9), max_size=100))
@settings(deadline=None)
def test_tasks_asked_for_are_bounded_and_prefer_those_with_most_to_come(tokens: dict[str, float]) -> None:
    asked = tasks_to_ask(tokens)
    assert len(asked) <= MAX_TASKS_ASKED
    assert {UNKNOWN, *BUILTIN_TASKS} <= asked
    left_out = [tokens[task] for task in tokens.keys() - asked]
    own = [tokens[task] for task in tokens.keys() & asked]
    assert not left_out or max(left_out) <= min(own, default=0.0)


@given(mix=st.dictionaries(st.sampled_from(["code", "math", "law"]), st.floats(0, 100)))
def test_demand_adds_up_to_the_tokens_of_the_mix(mix: dict[str, float]) -> None:
    forecast = Forecast(GRID)
    forecast.update({"code": favouring(1), UNKNOWN: favouring(0)})
    demand = forecast.demand(mix)
    assert demand.sum(axis=1) == pytest.approx([sum(mix.values()) if mix else 1.0] * 2)
