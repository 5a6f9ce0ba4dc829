"""What workers keep between them: unions, what was sent where, weights by tokens."""

from __future__ import annotations

import numpy as np
import pytest

from emoe.core.experts import BoolGrid
from emoe.eval.cluster_coverage import ClusterRecord, Look
from emoe.eval.replay import Outcome


def resident(*indices: int) -> BoolGrid:
    grid = np.zeros((1, 4), dtype=np.bool_)
    grid[0, list(indices)] = True
    return grid


RECORD = ClusterRecord(
    looks=[
        Look(at_seconds=0.0, resident={"a": resident(0), "b": resident(0)}),
        Look(at_seconds=10.0, resident={"a": resident(0, 1), "b": resident(2)}),
    ],
    demand={"chat": np.array([[3.0, 1.0, 0.0, 0.0]]), "code": np.array([[0.0, 0.0, 1.0, 1.0]])},
)


def outcome(task: str, worker_id: str, began_seconds: float, *, num_tokens: int = 10, refusal: str = "") -> Outcome:
    return Outcome(
        task=task,
        at_seconds=began_seconds,
        began_seconds=began_seconds,
        worker_id=worker_id,
        num_prompt_tokens=num_tokens,
        refusal=refusal,
    )


def test_the_cluster_covers_what_any_worker_does_and_is_weighted_by_tokens_and_time() -> None:
    outcomes = [outcome("chat", "a", 1.0, num_tokens=30), outcome("code", "a", 1.0, num_tokens=10)]
    figures = RECORD.figures(outcomes, None)
    assert figures.cluster_coverage == pytest.approx(0.75 * (0.75 + 1.0) / 2 + 0.25 * (0.0 + 0.5) / 2)
    assert figures.distinct_experts == 2.0


def test_a_request_is_held_against_the_residents_that_its_worker_had_when_it_began() -> None:
    outcomes = [outcome("chat", "a", 9.0), outcome("chat", "a", 10.0), outcome("code", "b", 11.0)]
    assert RECORD.figures(outcomes, None).sent_coverage == pytest.approx((0.75 + 1.0 + 0.5) / 3)


@pytest.mark.parametrize(("window", "expected"), [((10.0, 20.0), 3.0), ((5.0, 20.0), 2.0), ((2.0, 4.0), 1.0)])
def test_a_window_counts_what_stood_in_it(window: tuple[float, float], expected: float) -> None:
    assert RECORD.figures([outcome("chat", "a", 1.0)], window).distinct_experts == expected


def test_what_was_refused_or_is_of_an_unknown_task_or_worker_says_nothing() -> None:
    outcomes = [outcome("chat", "a", 1.0, refusal="full"), outcome("law", "a", 1.0)]
    figures = RECORD.figures(outcomes, None)
    assert (figures.cluster_coverage, figures.sent_coverage) == (None, None)
    assert RECORD.figures([outcome("chat", "gone", 1.0)], None).sent_coverage is None
