"""Residents stay where demand says nothing; the interval between predictions follows what asking anew was worth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emoe.core.experts import ExpertGrid, RoutingRule
from emoe.core.planning import PLANNERS, ResidencyPlanner
from emoe.core.refresh import (
    MAX_INTERVAL_PROMPTS,
    MIN_INTERVAL_PROMPTS,
    favour_residents,
    kept_ratio,
    next_interval_prompts,
    parse_interval,
)

GRID = ExpertGrid(num_layers=2, moe_layers=(0, 1), rule=RoutingRule(num_experts=6, top_k=1), expert_bytes=1)
GROUPED = ExpertGrid(
    num_layers=2,
    moe_layers=(0, 1),
    rule=RoutingRule(num_experts=6, top_k=2, num_groups=3, topk_groups=1),
    expert_bytes=1,
)


@pytest.mark.parametrize("planner", PLANNERS.values(), ids=PLANNERS.keys())
@pytest.mark.parametrize("grid", [GRID, GROUPED], ids=["plain", "grouped"])
def test_when_no_layer_is_sensitive_the_residents_stay(planner: ResidencyPlanner, grid: ExpertGrid) -> None:
    resident = np.array([[False, False, True, True, False, False], [False, False, False, False, True, True]])
    wanted = planner.plan(favour_residents(np.zeros(grid.shape), resident), num_slots=4, grid=grid)
    assert (wanted == resident).all()


@pytest.mark.parametrize("planner", PLANNERS.values(), ids=PLANNERS.keys())
def test_a_layer_that_is_not_sensitive_keeps_its_residents(planner: ResidencyPlanner) -> None:
    demand = np.array([[0.0] * 6, [0.1, 0.2, 0.3, 0.7, 0.1, 0.1]])
    resident = np.array([[False, False, True, True, False, False], [True, True, False, False, False, False]])
    wanted = planner.plan(favour_residents(demand, resident), num_slots=4, grid=GROUPED)
    assert wanted[0].tolist() == resident[0].tolist()
    assert wanted[1].tolist() == [False, False, True, True, False, False]


def plan_two(demand: np.ndarray) -> np.ndarray:
    return PLANNERS["global"].plan(demand, num_slots=2, grid=GRID)


def demand_for(index: int, share: float) -> np.ndarray:
    """Of one expert a layer; the others share the rest."""
    demand = np.full(GRID.shape, (1 - share) / 5)
    demand[:, index] = share
    return demand


def test_asking_anew_was_worth_nothing_when_the_same_experts_come_out() -> None:
    assert kept_ratio(demand_for(3, 0.5), demand_for(3, 0.9), plan_two) == 1


def test_asking_anew_was_worth_what_the_old_choice_would_have_missed() -> None:
    assert kept_ratio(demand_for(1, 0.5), demand_for(3, 0.5), plan_two) == pytest.approx(0.1 / 0.5)


def test_asking_anew_was_worth_nothing_when_nothing_is_in_demand() -> None:
    assert kept_ratio(demand_for(1, 0.5), np.zeros(GRID.shape), plan_two) == 1


@pytest.mark.parametrize(
    ("interval", "kept", "after"),
    [(40, 1.0, 80), (100, 1.0, 160), (40, 0.99, 40), (40, 0.9, 20), (6, 0.5, 5), (500, 1.0, 500), (500, 0.9, 250)],
    ids=["calm", "bounded", "as it is", "drift", "bounded below", "set beyond", "set beyond, drift"],
)
def test_the_interval_follows_drift(interval: int, kept: float, after: int) -> None:
    assert next_interval_prompts(interval, kept) == after


@given(kept=st.lists(st.floats(0, 1), max_size=30))
def test_the_interval_stays_within_its_bounds(kept: list[float]) -> None:
    interval = 40
    for ratio in kept:
        interval = next_interval_prompts(interval, ratio)
        assert MIN_INTERVAL_PROMPTS <= interval <= MAX_INTERVAL_PROMPTS


@pytest.mark.parametrize("value", [1, 40, 100_000, "auto"])
def test_an_interval_is_a_number_of_prompts_or_auto(value: object) -> None:
    assert parse_interval(value) == value


@pytest.mark.parametrize("value", [0, -1, 100_001, True, 4.0, "40", "never", None])
def test_what_is_no_interval_is_refused_with_what_would_do(value: object) -> None:
    with pytest.raises(ValueError, match="neither auto nor a number of prompts"):
        parse_interval(value)
