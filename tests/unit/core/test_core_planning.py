"""Planners: within the slots, routable everywhere, never worse with more slots, and settled once settled."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emoe.core.errors import BudgetError, PlanError
from emoe.core.experts import ExpertGrid, ExpertId, FloatGrid, RoutingRule
from emoe.core.planning import PLANNERS, GlobalGreedyPlanner, PerLayerTopPlanner, PinnedPlanner, ResidencyPlanner
from emoe.core.refresh import favour_residents

PLAIN = RoutingRule(num_experts=8, top_k=2)
RULES = [
    PLAIN,
    RoutingRule(num_experts=12, top_k=3, num_groups=4, topk_groups=2, group_score_experts=1),
    RoutingRule(num_experts=16, top_k=4, num_groups=4, topk_groups=2, group_score_experts=2),
    RoutingRule(num_experts=12, top_k=3, num_groups=2, topk_groups=1, group_score_experts=2),
    RoutingRule(num_experts=12, top_k=3, num_groups=2, topk_groups=1),
]
each_planner = pytest.mark.parametrize("planner", PLANNERS.values(), ids=PLANNERS.keys())
# Few different values, so that ties are common; some that do not add up exactly in binary.
DEMANDS = st.sampled_from([0.0, 0.1, 0.1, 0.3, 0.7, 1.0, 2.5, 1e-9, 1e6])


@st.composite
def grids(draw: st.DrawFn, rules: list[RoutingRule] = RULES) -> ExpertGrid:
    num_layers = draw(st.integers(1, 3))
    moe_layers = draw(st.sets(st.integers(0, num_layers - 1), min_size=1))
    return ExpertGrid(
        num_layers=num_layers, moe_layers=tuple(sorted(moe_layers)), rule=draw(st.sampled_from(rules)), expert_bytes=64
    )


@st.composite
def problems(draw: st.DrawFn, rules: list[RoutingRule] = RULES) -> tuple[FloatGrid, int, ExpertGrid]:
    grid = draw(grids(rules))
    size = grid.num_layers * grid.rule.num_experts
    demand = np.array(draw(st.lists(DEMANDS, min_size=size, max_size=size))).reshape(grid.shape)
    least = grid.rule.min_residents * len(grid.moe_layers)
    return demand, draw(st.integers(least, grid.num_experts_total + 3)), grid


@each_planner
@given(problem=problems())
@settings(deadline=None)
def test_a_plan_fits_the_slots_and_leaves_every_layer_routable(
    planner: ResidencyPlanner, problem: tuple[FloatGrid, int, ExpertGrid]
) -> None:
    demand, num_slots, grid = problem
    wanted = planner.plan(demand, num_slots=num_slots, grid=grid)
    assert int(wanted.sum()) <= num_slots
    assert all(grid.rule.is_routable(wanted[layer]) for layer in grid.moe_layers)
    assert not (wanted & ~grid.all_experts()).any(), "a dense layer has no experts"


@each_planner
@given(problem=problems())
@settings(deadline=None)
def test_more_slots_never_cover_less_demand(
    planner: ResidencyPlanner, problem: tuple[FloatGrid, int, ExpertGrid]
) -> None:
    demand, num_slots, grid = problem
    fewer = planner.plan(demand, num_slots=num_slots, grid=grid)
    more = planner.plan(demand, num_slots=num_slots + 1, grid=grid)
    assert demand[more].sum() >= demand[fewer].sum() * (1 - 1e-12)


@given(problem=problems(rules=[PLAIN]))
@settings(deadline=None)
def test_global_greedy_covers_at_least_what_per_layer_does(problem: tuple[FloatGrid, int, ExpertGrid]) -> None:
    demand, num_slots, grid = problem
    best = GlobalGreedyPlanner().plan(demand, num_slots=num_slots, grid=grid)
    even = PerLayerTopPlanner().plan(demand, num_slots=num_slots, grid=grid)
    assert demand[best].sum() >= demand[even].sum() * (1 - 1e-12)


@given(problem=problems(rules=[PLAIN]))
@settings(deadline=None)
def test_no_slot_is_left_empty_without_groups(problem: tuple[FloatGrid, int, ExpertGrid]) -> None:
    demand, num_slots, grid = problem
    wanted = GlobalGreedyPlanner().plan(demand, num_slots=num_slots, grid=grid)
    assert int(wanted.sum()) == min(num_slots, grid.num_experts_total)


@each_planner
@given(problem=problems())
@settings(deadline=None)
def test_slots_for_all_hold_all(planner: ResidencyPlanner, problem: tuple[FloatGrid, int, ExpertGrid]) -> None:
    demand, _, grid = problem
    wanted = planner.plan(demand, num_slots=grid.num_experts_total, grid=grid)
    assert (wanted == grid.all_experts()).all()


@each_planner
@given(problem=problems())
@settings(deadline=None)
def test_the_same_demand_gives_the_same_plan(
    planner: ResidencyPlanner, problem: tuple[FloatGrid, int, ExpertGrid]
) -> None:
    demand, num_slots, grid = problem
    first = planner.plan(demand, num_slots=num_slots, grid=grid)
    assert (first == planner.plan(demand.copy(), num_slots=num_slots, grid=grid)).all()


@each_planner
@given(problem=problems(), data=st.data())
@settings(deadline=None)
def test_replanning_from_any_residency_settles(
    planner: ResidencyPlanner, problem: tuple[FloatGrid, int, ExpertGrid], data: st.DataObject
) -> None:
    demand, num_slots, grid = problem
    size = demand.size
    resident = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size))).reshape(demand.shape)
    first = planner.plan(favour_residents(demand, resident), num_slots=num_slots, grid=grid)
    second = planner.plan(favour_residents(demand, first), num_slots=num_slots, grid=grid)
    assert (first == second).all()


@each_planner
@pytest.mark.parametrize("rule", RULES, ids=["plain", "v2", "v3", "v3-one-group", "v2-one-group"])
def test_too_few_slots_are_refused_with_what_is_needed(planner: ResidencyPlanner, rule: RoutingRule) -> None:
    grid = ExpertGrid(num_layers=2, moe_layers=(0, 1), rule=rule, expert_bytes=64)
    with pytest.raises(BudgetError, match="raise the expert memory"):
        planner.plan(np.ones(grid.shape), num_slots=2 * rule.min_residents - 1, grid=grid)


def test_a_newcomer_must_beat_a_resident_by_the_margin() -> None:
    grid = ExpertGrid(num_layers=1, moe_layers=(0,), rule=RoutingRule(num_experts=3, top_k=1), expert_bytes=64)
    resident = np.array([[True, False, False]])
    close, clear = np.array([[1.0, 1.05, 0.0]]), np.array([[1.0, 1.15, 0.0]])
    stays = GlobalGreedyPlanner().plan(favour_residents(close, resident, margin_ratio=0.1), num_slots=1, grid=grid)
    yields = GlobalGreedyPlanner().plan(favour_residents(clear, resident, margin_ratio=0.1), num_slots=1, grid=grid)
    assert stays.tolist() == [[True, False, False]]
    assert yields.tolist() == [[False, True, False]]


def test_residents_stay_when_nothing_is_in_demand() -> None:
    grid = ExpertGrid(num_layers=1, moe_layers=(0,), rule=RoutingRule(num_experts=4, top_k=1), expert_bytes=64)
    resident = np.array([[False, False, True, True]])
    wanted = GlobalGreedyPlanner().plan(favour_residents(np.zeros((1, 4)), resident), num_slots=2, grid=grid)
    assert (wanted == resident).all()


def test_a_group_is_never_opened_by_a_single_expert_when_equal_demands_round_down() -> None:
    rule = RoutingRule(num_experts=12, top_k=3, num_groups=2, topk_groups=1)
    grid = ExpertGrid(num_layers=1, moe_layers=(0,), rule=rule, expert_bytes=64)
    demand = np.array([[5.0] * 6 + [0.7] * 6])  # the mean of three times 0.7 is less than 0.7 in floats
    wanted = GlobalGreedyPlanner().plan(demand, num_slots=7, grid=grid)
    assert rule.is_routable(wanted[0])
    assert int(wanted.sum()) == 6


@given(problem=problems([PLAIN]), data=st.data())
@settings(deadline=None)
def test_pinned_experts_are_in_every_plan_that_has_room_for_them_beside_each_layers_least(
    problem: tuple[FloatGrid, int, ExpertGrid], data: st.DataObject
) -> None:
    demand, _, grid = problem
    experts = [ExpertId(layer, index) for layer in grid.moe_layers for index in range(grid.rule.num_experts)]
    pinned = data.draw(st.sets(st.sampled_from(experts), max_size=6))
    beyond = [max(0, sum(e.layer == layer for e in pinned) - grid.rule.min_residents) for layer in grid.moe_layers]
    least = grid.rule.min_residents * len(grid.moe_layers) + sum(beyond)
    wanted = PinnedPlanner(GlobalGreedyPlanner(), pinned, grid).plan(demand, num_slots=least, grid=grid)
    assert all(wanted[expert] for expert in pinned)


def test_an_expert_that_the_model_does_not_have_cannot_be_pinned() -> None:
    grid = ExpertGrid(num_layers=2, moe_layers=(1,), rule=PLAIN, expert_bytes=64)
    with pytest.raises(PlanError, match="3 of layer 0, 8 of layer 1"):
        PinnedPlanner(GlobalGreedyPlanner(), [ExpertId(0, 3), ExpertId(1, 7), ExpertId(1, 8)], grid)
