"""Stepping back: whoever foretells worse of late is not gone by, until it holds up again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emoe.core.experts import CountGrid, FloatGrid
from emoe.core.step_back import StepBack, foremost

SHAPE = (2, 8)
GRIDS = st.lists(st.integers(0, 5), min_size=16, max_size=16)


def on(*experts: int) -> FloatGrid:
    """A prediction of these experts alone."""
    grid = np.zeros(SHAPE)
    grid[:, list(experts)] = 1 / len(experts)
    return grid


def routed(*experts: int, num_tokens: int = 100) -> CountGrid:
    return np.rint(on(*experts) * num_tokens).astype(np.int64)


def board(**settings: float) -> StepBack:
    return StepBack(2, **{"window_tokens": 400.0, "min_tokens": 200.0, **settings})


@given(values=GRIDS, ratio=st.floats(0.01, 1.0))
def test_a_plan_of_the_foremost_holds_its_share_of_each_layer(values: list[int], ratio: float) -> None:
    prediction = np.array(values, dtype=np.float64).reshape(SHAPE)
    held = foremost(prediction, ratio)
    assert held.sum(axis=1) == pytest.approx([max(1, round(ratio * 8))] * 2)
    assert ((held >= 0) & (held <= 1)).all()
    for row, kept in zip(prediction, held, strict=True):
        least_kept, most_left = row[kept > 0].min(), row[kept < 1].max(initial=-1)
        assert least_kept >= most_left


def test_equal_experts_share_what_is_left() -> None:
    assert foremost(np.full(SHAPE, 0.125)).tolist() == [[0.25] * 8] * 2


def test_the_first_contender_stands_until_enough_was_seen() -> None:
    contest = board(min_tokens=250.0)
    for standing in (0, 0, 1):
        contest.observe([on(0, 1), on(2, 3)], routed(2, 3))
        assert contest.standing == standing


def test_one_that_holds_up_is_stood_by() -> None:
    contest = board()
    for _ in range(20):
        contest.observe([on(2, 3), on(2, 3)], routed(2, 3))
    assert contest.standing == 0


def test_a_little_worse_is_not_worse() -> None:
    contest = board(margin_ratio=0.02)
    almost = on(0, 1)
    for _ in range(20):
        # Of 200 choices 101 fall on what the second holds, 99 on what the first does.
        counts = routed(0, 1, num_tokens=99) + routed(2, 3, num_tokens=101)
        contest.observe([almost, on(2, 3)], counts)
    assert contest.standing == 0


def test_it_goes_forward_again_once_the_first_is_as_good() -> None:
    contest = board()
    for _ in range(10):
        contest.observe([on(0, 1), on(2, 3)], routed(2, 3))
    assert contest.standing == 1
    num_reports = 0
    while contest.standing:
        contest.observe([on(0, 1), on(2, 3)], routed(0, 1))
        num_reports += 1
    assert 2 <= num_reports <= 8, "as soon as the window has more of the new than of the old, not before"


def test_the_best_of_three_is_gone_by() -> None:
    contest = StepBack(3, window_tokens=400.0, min_tokens=100.0)
    contest.observe([on(0, 1), on(2, 4), on(2, 3)], routed(2, 3))
    assert contest.standing == 2
    assert [contest.covered_ratio(contender) for contender in range(3)] == [0.0, 0.5, 1.0]


def test_of_those_as_good_as_the_standing_one_the_preferred_is_gone_forward_to() -> None:
    contest = StepBack(3, window_tokens=100.0, min_tokens=100.0)
    contest.observe([on(0, 1), on(4, 5), on(2, 3)], routed(2, 3))
    assert contest.standing == 2
    contest.observe([on(2, 3), on(2, 3), on(0, 1)], routed(2, 3, num_tokens=1000))
    assert contest.standing == 0


@given(reports=st.lists(st.tuples(GRIDS, GRIDS, GRIDS), max_size=12))
def test_whoever_stands_covered_no_less_than_any_other_but_for_the_margin(
    reports: list[tuple[list[int], list[int], list[int]]],
) -> None:
    contest = StepBack(2, window_tokens=50.0, min_tokens=0.0, margin_ratio=0.05)
    for *predictions, counts in reports:
        grids = [np.array(values, dtype=np.float64).reshape(SHAPE) for values in predictions]
        contest.observe(grids, np.array(counts, dtype=np.int64).reshape(SHAPE))
        ratios = [contest.covered_ratio(0), contest.covered_ratio(1)]
        assert ratios[contest.standing] >= max(ratios) - 0.05 - 1e-9


def test_a_report_of_nothing_changes_nothing() -> None:
    contest = board(min_tokens=0.0)
    contest.observe([on(0), on(1)], np.zeros(SHAPE, dtype=np.int64))
    assert (contest.standing, contest.covered_ratio(0)) == (0, 0.0)
