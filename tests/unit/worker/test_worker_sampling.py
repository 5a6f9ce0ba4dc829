from __future__ import annotations

import collections

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emoe.core.generation import Sampling
from emoe.worker.sampling import Draw, keep_top, sample


def draw(position: int = 0, seed: int = 1, **sampling: object) -> Draw:
    return Draw(sampling=Sampling(**sampling), seed=seed, position=position)  # type: ignore[arg-type]


def logits(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows)


def test_temperature_zero_takes_the_best() -> None:
    picked = sample(logits([0.0, 3.0, 1.0], [5.0, 3.0, 1.0]), [draw(), draw()])
    assert [one.token_id for one in picked] == [1, 0]


def test_a_row_draws_the_same_whoever_else_is_in_the_batch() -> None:
    rows = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    draws = [draw(position=i, seed=9, temperature=1.0) for i in range(8)]
    together = [one.token_id for one in sample(rows, draws)]
    alone = [sample(rows[i : i + 1], [draws[i]])[0].token_id for i in range(8)]
    assert together == alone


def test_draws_follow_the_softmax() -> None:
    row = logits([0.0, 1.0, 2.0])
    counts = collections.Counter(sample(row, [draw(position=i, temperature=1.0)])[0].token_id for i in range(3000))
    expected = row[0].softmax(-1)
    for token in range(3):
        assert counts[token] / 3000 == pytest.approx(float(expected[token]), abs=0.03)


@settings(max_examples=50)
@given(
    values=st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=12, unique=True),
    top_k=st.integers(0, 12),
    top_p=st.floats(0.05, 1.0),
)
def test_top_k_and_top_p_keep_the_best_and_no_more_than_they_say(values: list[float], top_k: int, top_p: float) -> None:
    row = torch.tensor(values)
    kept = keep_top(row, Sampling(top_k=top_k, top_p=top_p, temperature=1.0)).isfinite()
    assert kept[row.argmax()]
    if top_k:
        assert kept.sum() <= top_k
    assert not kept[~kept].any()
    worst_kept = row[kept].min()
    assert (row[~kept] <= worst_kept).all()
    if not top_k:
        assert row.softmax(-1)[kept].sum() >= min(top_p, 1.0) - 1e-4


def test_log_probabilities_name_the_chosen_token_first_then_the_best() -> None:
    row = logits([0.0, 2.0, 1.0])
    (picked,) = sample(row, [draw(num_logprobs=2)])
    expected = row[0].log_softmax(-1)
    assert [token for token, _ in picked.logprobs] == [1, 1, 2]
    assert picked.logprobs[0][1] == pytest.approx(float(expected[1]))
    assert sample(row, [draw()])[0].logprobs == ()


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_a_row_that_is_no_numbers_gives_nothing_and_leaves_the_others(temperature: float) -> None:
    rows = logits([0.0, 9.0, 1.0], [0.0, float("nan"), 1.0], [float("inf"), 0.0, 0.0])
    good, bad, endless = sample(rows, [draw(temperature=temperature)] * 3)
    assert good is not None
    assert bad is None
    assert endless is None


@pytest.mark.parametrize("temperature", [1e-320, 1e-45, 1e-7], ids=str)
def test_a_temperature_near_zero_takes_the_best(temperature: float) -> None:
    (picked,) = sample(logits([-3.0, 88.0, 87.9]), [draw(temperature=temperature, top_p=0.9, top_k=2)])
    assert picked is not None
    assert picked.token_id == 1


def test_equal_logits_do_not_widen_top_k() -> None:
    kept = keep_top(torch.zeros(9), Sampling(top_k=3, temperature=1.0)).isfinite()
    assert kept.sum() == 3
