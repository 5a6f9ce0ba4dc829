"""The frequency predictor: counts decay, little-known tasks lean on the rest, rows are shares of the tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emoe.core.demand import FrequencyPredictor, tokens_in
from emoe.core.experts import CountGrid, FloatGrid
from emoe.core.tasks import UNKNOWN

SHAPE = (3, 4)
COUNTS = st.lists(st.integers(0, 500), min_size=8, max_size=8)


def counts_of(values: list[int]) -> CountGrid:
    """The first layer is dense: nothing is ever routed there."""
    return np.array([0, 0, 0, 0, *values], dtype=np.int64).reshape(SHAPE)


def concentrated(index: int, num_tokens: int) -> CountGrid:
    counts = np.zeros(SHAPE, dtype=np.int64)
    counts[1:, index] = num_tokens
    return counts


@given(reports=st.lists(st.tuples(st.sampled_from(["code", "math", UNKNOWN]), COUNTS), min_size=1, max_size=5))
@settings(deadline=None)
def test_rows_of_moe_layers_add_up_to_the_tokens_and_dense_rows_to_nothing(
    reports: list[tuple[str, list[int]]],
) -> None:
    predictor = FrequencyPredictor(SHAPE)
    predictor.observe("code", concentrated(0, 1))
    for task, values in reports:
        predictor.observe(task, counts_of(values))
    demand = predictor.predict({"code": 30.0, "never-seen": 12.0})
    assert demand[1:].sum(axis=1) == pytest.approx([42.0, 42.0])
    assert (demand[0] == 0).all()
    assert (demand >= 0).all()


def test_before_any_count_every_expert_is_in_equal_demand() -> None:
    demand = FrequencyPredictor(SHAPE).predict({"code": 8.0})
    assert (demand == 2.0).all()


def test_no_task_means_one_token_of_the_unknown_one() -> None:
    predictor = FrequencyPredictor(SHAPE)
    predictor.observe("code", concentrated(1, 100))
    assert (predictor.predict({}) == predictor.predict({UNKNOWN: 1.0})).all()


def test_a_task_draws_demand_to_the_experts_it_used() -> None:
    predictor = FrequencyPredictor(SHAPE)
    predictor.observe("code", concentrated(1, 10_000))
    predictor.observe("math", concentrated(3, 10_000))
    assert predictor.predict({"code": 1.0})[1].argmax() == 1
    assert predictor.predict({"math": 1.0})[1].argmax() == 3
    mix = predictor.predict({"code": 3.0, "math": 1.0})[1]
    assert mix[1] > mix[3] > mix[0]


def test_a_count_halves_in_weight_after_the_half_life() -> None:
    predictor = FrequencyPredictor(SHAPE, half_life_tokens=1000)
    predictor.observe("code", concentrated(0, 400))
    predictor.observe("code", concentrated(1, 1000))
    assert predictor.weights["code"][1].tolist() == [200.0, 1000.0, 0.0, 0.0]


def test_one_task_does_not_age_another() -> None:
    predictor = FrequencyPredictor(SHAPE, half_life_tokens=10)
    predictor.observe("code", concentrated(0, 400))
    predictor.observe("math", concentrated(1, 1000))
    assert predictor.weights["code"][1, 0] == 400.0


def test_an_unknown_task_is_predicted_as_the_mean_of_the_known_ones() -> None:
    predictor = FrequencyPredictor(SHAPE)
    predictor.observe("code", concentrated(0, 1_000_000))
    predictor.observe("math", concentrated(1, 10))
    assert predictor.predict({"never-seen": 2.0})[1] == pytest.approx([1.0, 1.0, 0.0, 0.0])


def test_requests_without_a_task_are_foretold_by_the_latest_of_their_kind() -> None:
    predictor = FrequencyPredictor(SHAPE, unknown_half_life_tokens=1000, prior_tokens=100)
    predictor.observe("code", concentrated(0, 1_000_000))
    predictor.observe(UNKNOWN, concentrated(1, 10_000))
    assert predictor.predict({UNKNOWN: 1.0})[1].argmax() == 1
    predictor.observe(UNKNOWN, concentrated(2, 5_000))
    assert predictor.predict({UNKNOWN: 1.0})[1].argmax() == 2
    assert predictor.predict({"code": 1.0})[1].argmax() == 0


def test_a_task_seen_little_leans_on_the_mean_of_all() -> None:
    predictor = FrequencyPredictor(SHAPE, prior_tokens=100)
    predictor.observe("code", concentrated(0, 1_000_000))
    predictor.observe("math", concentrated(1, 10))
    math = predictor.predict({"math": 1.0})[1]
    assert math == pytest.approx([50 / 110, 60 / 110, 0.0, 0.0])


def prior(index: int) -> FloatGrid:
    grid = np.zeros(SHAPE)
    grid[1:, index] = 1.0
    return grid


def test_a_task_begins_at_its_prior() -> None:
    predictor = FrequencyPredictor(SHAPE, priors={"code": prior(1), "math": prior(3)})
    assert predictor.predict({"code": 8.0})[1].tolist() == [0.0, 8.0, 0.0, 0.0]
    assert predictor.predict({"math": 2.0})[1].tolist() == [0.0, 0.0, 0.0, 2.0]


def test_counts_add_to_the_prior_which_does_not_decay() -> None:
    predictor = FrequencyPredictor(SHAPE, priors={"code": prior(1)}, profile_tokens=300, half_life_tokens=1)
    predictor.observe("code", concentrated(0, 5000))
    predictor.observe("code", concentrated(2, 100))
    assert predictor.predict({"code": 4.0})[1] == pytest.approx([0.0, 3.0, 1.0, 0.0])


def test_a_task_without_a_prior_leans_on_the_mean_of_those_with_one() -> None:
    predictor = FrequencyPredictor(SHAPE, priors={"code": prior(1), "math": prior(3)}, prior_tokens=100)
    assert predictor.predict({"law": 2.0})[1] == pytest.approx([0.0, 1.0, 0.0, 1.0])
    assert predictor.predict({UNKNOWN: 2.0})[1] == pytest.approx([0.0, 1.0, 0.0, 1.0])
    predictor.observe("law", concentrated(0, 10_000))
    assert predictor.predict({"law": 1.0})[1].argmax() == 0


def test_the_mean_moves_with_what_is_counted() -> None:
    predictor = FrequencyPredictor(SHAPE, priors={"code": prior(1)}, profile_tokens=100)
    assert predictor.predict({UNKNOWN: 1.0})[1] == pytest.approx([0.0, 1.0, 0.0, 0.0])
    predictor.observe("code", concentrated(2, 100))
    assert predictor.predict({UNKNOWN: 1.0})[1] == pytest.approx([0.0, 0.5, 0.5, 0.0])


def test_it_goes_on_from_the_counts_given_and_leaves_those_alone() -> None:
    before = FrequencyPredictor(SHAPE)
    before.observe("code", concentrated(2, 50))
    after = FrequencyPredictor(SHAPE, weights=before.weights)
    assert (after.predict({"code": 1.0}) == before.predict({"code": 1.0})).all()
    after.observe("code", concentrated(1, 50))
    assert before.weights["code"][1].tolist() == [0.0, 0.0, 50.0, 0.0]


@given(tasks=st.lists(st.sampled_from([f"task{n}" for n in range(8)]), max_size=30))
def test_the_least_recently_observed_task_is_forgotten(tasks: list[str]) -> None:
    predictor = FrequencyPredictor(SHAPE, max_tasks=3)
    for task in tasks:
        predictor.observe(task, concentrated(1, 10))
    assert list(predictor.weights) == list(reversed(list(dict.fromkeys(reversed(tasks)))[:3]))


def test_predicting_changes_nothing() -> None:
    predictor = FrequencyPredictor(SHAPE)
    predictor.observe("code", concentrated(2, 7))
    first = predictor.predict({"code": 5.0})
    assert (first == predictor.predict({"code": 5.0})).all()


def test_counts_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 4\)"):
        FrequencyPredictor(SHAPE).observe("code", np.zeros((2, 4), dtype=np.int64))


def test_tokens_are_counted_at_the_busiest_layer() -> None:
    assert tokens_in(counts_of([1, 2, 3, 4, 5, 0, 0, 0])) == 10.0
