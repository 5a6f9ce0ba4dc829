"""What is told of coverage: shares of each task's demand, as residents and demand change, and not for a trifle."""

from __future__ import annotations

import numpy as np
import pytest

from emoe.core.experts import BoolGrid, FloatGrid
from emoe.loader.coverage import Coverage
from emoe.loader.workers import WorkerState

NUM_EXPERTS = 200


def resident(number: int) -> BoolGrid:
    grid = np.zeros((1, NUM_EXPERTS), dtype=np.bool_)
    grid[0, :number] = True
    return grid


def state(worker_id: str, number: int) -> WorkerState:
    return WorkerState(worker_id=worker_id, address="127.0.0.1:1", num_slots=NUM_EXPERTS, resident=resident(number))


def even(first: int = 0) -> FloatGrid:
    demand = np.zeros((1, NUM_EXPERTS))
    demand[0, first : first + 100] = 3.0
    return demand


def test_coverage_is_the_share_of_a_tasks_demand_that_residents_meet() -> None:
    coverage = Coverage()
    coverage.foretell({"chat": even(), "code": even(100)})
    coverage.refresh([state("a", 50), state("b", 200)])
    assert coverage.told["a"] == pytest.approx({"chat": 0.5, "code": 0.0})
    assert coverage.told["b"] == pytest.approx({"chat": 1.0, "code": 1.0})


def test_nothing_is_told_before_demand_is_known() -> None:
    coverage = Coverage()
    assert not coverage.refresh([state("a", 50)])
    assert coverage.told == {}


def test_small_changes_are_not_told_until_they_add_up() -> None:
    coverage = Coverage()
    coverage.foretell({"chat": even()})
    assert coverage.refresh([state("a", 50)])
    assert not coverage.refresh([state("a", 50)])
    assert not coverage.refresh([state("a", 51)])
    assert coverage.told["a"] == pytest.approx({"chat": 0.5})
    assert coverage.refresh([state("a", 52)])
    assert coverage.told["a"] == pytest.approx({"chat": 0.52})


def test_a_demand_foretold_anew_is_held_against_the_same_residents() -> None:
    coverage, states = Coverage(), [state("a", 50)]
    coverage.foretell({"chat": even()})
    coverage.refresh(states)
    coverage.foretell({"chat": even(25), "code": even()})
    assert coverage.refresh(states)
    assert coverage.told["a"] == pytest.approx({"chat": 0.25, "code": 0.5})


def test_a_worker_that_leaves_is_told_of_no_more() -> None:
    coverage = Coverage()
    coverage.foretell({"chat": even()})
    coverage.refresh([state("a", 50), state("b", 60)])
    kept = coverage.told["b"]
    assert coverage.refresh([state("b", 60)])
    assert coverage.told == {"b": kept}


def test_a_task_that_nobody_wants_anything_for_is_left_out() -> None:
    coverage = Coverage()
    coverage.foretell({"chat": even(), "none": np.zeros((1, NUM_EXPERTS))})
    coverage.refresh([state("a", 50)])
    assert coverage.told["a"].keys() == {"chat"}
