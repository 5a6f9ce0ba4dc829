"""The length sketch against exact quantiles, means and remainders of the same lengths."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emoe.core.length_sketch import MAX_LENGTH, RELATIVE_ERROR, LengthSketch

LENGTHS = st.lists(st.integers(0, 30_000), min_size=1, max_size=200)
SHARES = st.floats(0, 1)


def sketch_of(lengths: list[int], *, half_life: float = math.inf) -> LengthSketch:
    sketch = LengthSketch(half_life=half_life)
    for length in lengths:
        sketch.observe(length)
    return sketch


@given(LENGTHS, SHARES)
def test_a_quantile_is_the_exact_one_within_the_relative_error(lengths: list[int], share: float) -> None:
    exact = float(np.quantile(lengths, share, method="inverted_cdf"))
    assert sketch_of(lengths).quantile(share) == pytest.approx(exact, rel=RELATIVE_ERROR, abs=1e-9)


@given(LENGTHS)
def test_the_mean_is_exact_and_every_length_weighs_one_without_decay(lengths: list[int]) -> None:
    sketch = sketch_of(lengths)
    assert sketch.mean == pytest.approx(np.mean(lengths), rel=1e-9)
    assert sketch.weight == pytest.approx(len(lengths))


@given(st.lists(st.integers(0, 24), min_size=1, max_size=100), st.integers(0, 24))
def test_what_remains_of_short_answers_is_exact(lengths: list[int], num_so_far: int) -> None:
    longer = [length - num_so_far for length in lengths if length > num_so_far]
    if longer:
        assert sketch_of(lengths).expected_remaining(num_so_far) == pytest.approx(np.mean(longer))


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=200), st.integers(0, 4000))
def test_what_remains_lies_between_one_token_and_the_longest(lengths: list[int], num_so_far: int) -> None:
    remaining = sketch_of(lengths).expected_remaining(num_so_far)
    widest = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
    assert 1.0 <= remaining <= max(lengths) * widest


@given(st.lists(st.integers(0, 24), min_size=1, max_size=100), st.integers(1, 24))
def test_the_mean_of_answers_that_are_cut_short_is_exact(lengths: list[int], limit: int) -> None:
    assert sketch_of(lengths).expected_within(limit) == pytest.approx(np.minimum(lengths, limit).mean())


def test_what_remains_of_long_answers_is_close_to_exact() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 0.8, 20_000).astype(int)
    sketch = sketch_of(lengths.tolist())
    for num_so_far in (0, 10, 100, 333, 700):
        exact = float(np.mean(lengths[lengths > num_so_far] - num_so_far))
        assert sketch.expected_remaining(num_so_far) == pytest.approx(exact, rel=0.02)


def test_beyond_everything_seen_an_answer_goes_on_as_the_longest_tenth_did() -> None:
    sketch = sketch_of([10] * 90 + [20] * 10)
    assert sketch.expected_remaining(15) == 5.0
    assert sketch.expected_remaining(100) == pytest.approx(1.0)
    spread = sketch_of(list(range(1, 1001)))
    assert spread.expected_remaining(5000) == pytest.approx(50, rel=0.4)


@given(LENGTHS, LENGTHS, SHARES)
def test_merged_sketches_are_the_sketch_of_all_lengths(left: list[int], right: list[int], share: float) -> None:
    merged, whole = sketch_of(left), sketch_of(left + right)
    merged.merge(sketch_of(right))
    assert merged.quantile(share) == whole.quantile(share)
    assert merged.mean == pytest.approx(whole.mean)


def test_old_lengths_fade_by_half_each_half_life() -> None:
    sketch = sketch_of([100] * 1000, half_life=50)
    for _ in range(50):
        sketch.observe(200)
    assert sketch.mean == pytest.approx(150, rel=0.01)
    for _ in range(5000):
        sketch.observe(200)
    assert sketch.quantile(0.001) == pytest.approx(200, rel=RELATIVE_ERROR)
    assert sketch.weight == pytest.approx(1 / (1 - 2 ** (-1 / 50)), rel=1e-6)


@given(LENGTHS, st.sampled_from([1.0, 3.0, 500.0, math.inf]), SHARES)
def test_a_stored_sketch_comes_back_the_same(lengths: list[int], half_life: float, share: float) -> None:
    sketch = sketch_of(lengths, half_life=half_life)
    back = LengthSketch.from_json(json.loads(json.dumps(sketch.to_json(), allow_nan=False)))
    assert back.half_life == sketch.half_life
    assert back.mean == pytest.approx(sketch.mean)
    assert back.weight == pytest.approx(sketch.weight)
    assert back.quantile(0.5) == pytest.approx(sketch.quantile(0.5), rel=2 * RELATIVE_ERROR)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(None, id="nothing"),
        pytest.param({"format": "length sketch 0"}, id="another version"),
        pytest.param({"half_life": -1}, id="half-life"),
        pytest.param({"half_life": math.nan}, id="half-life not a number"),
        pytest.param({"buckets": [[26, 1.0, 26.0]]}, id="no bucket begins there"),
        pytest.param({"buckets": [[3, 1.0, 3.0], [3, 1.0, 3.0]]}, id="a bucket twice"),
        pytest.param({"buckets": [[3, 1.0, 9.0]]}, id="a mean outside its bucket"),
        pytest.param({"buckets": [[3, -1.0, -3.0]]}, id="negative"),
        pytest.param({"buckets": [[3, math.inf, math.inf]]}, id="infinite"),
        pytest.param({"buckets": [[3, 1.0, 3.0], [4, 1.0]]}, id="short"),
        pytest.param({"buckets": [[True, 1.0, 1.0]]}, id="true is no length"),
        pytest.param({"buckets": 7}, id="no list"),
    ],
)
def test_what_no_sketch_wrote_is_refused(wrong: dict[str, object] | None) -> None:
    stored = None if wrong is None else sketch_of([]).to_json() | wrong
    with pytest.raises(ValueError, match=r"^its? |half-life|unpack"):
        LengthSketch.from_json(stored)


@pytest.mark.parametrize(
    ("mean", "p50", "p90", "p99"),
    [
        pytest.param(150.0, 100.0, 250.0, 400.0, id="usual"),
        pytest.param(60.0, 40.0, 60.0, 90.0, id="few very long ones"),
        pytest.param(1.0, 1.0, 1.0, 1.0, id="one token"),
    ],
)
def test_a_seeded_sketch_has_the_means_and_quantiles_it_was_given(
    mean: float, p50: float, p90: float, p99: float
) -> None:
    sketch = LengthSketch()
    sketch.seed(mean=mean, p50=p50, p90=p90, p99=p99, weight=20)
    assert sketch.weight == pytest.approx(20)
    assert sketch.mean == pytest.approx(mean, rel=0.03)
    assert sketch.quantile(0.49) == pytest.approx(p50, rel=0.1)
    assert sketch.quantile(0.9) == pytest.approx(p90, rel=0.1)


def test_lengths_out_of_range_count_as_the_nearest() -> None:
    sketch = sketch_of([-5, 10 * MAX_LENGTH])
    assert sketch.quantile(0.1) == 0.0
    assert sketch.quantile(1.0) == pytest.approx(MAX_LENGTH, rel=RELATIVE_ERROR)


def test_an_empty_sketch_has_nothing_to_say() -> None:
    sketch = LengthSketch()
    for ask in (lambda: sketch.mean, lambda: sketch.quantile(0.5), lambda: sketch.expected_remaining(0)):
        with pytest.raises(ValueError, match="no length"):
            ask()
