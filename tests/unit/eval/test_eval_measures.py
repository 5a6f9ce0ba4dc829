"""Figures of a run: by task and their mean, the gap between baselines, the worth of labels."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from emoe.eval.measures import MEAN, Outcome, QualityRow, find_gaps, find_label_worth, measure
from emoe.eval.rows import EncodedRow
from emoe.eval.streams import Running, Stream

EXPERT_BYTES = 100


def finished(task: str, *, nll: float, exact: bool = False, hits: int = 0, state: tuple[float, float]) -> Running:
    row = EncodedRow(task=task, token_ids=(1, 2, 3, 4), num_prompt_tokens=2)
    return Running(
        row=row,
        task=task,
        nll=nll,
        num_judged=2,
        is_exact=exact,
        num_hits=hits,
        num_choices=4,
        num_hits_everywhere=hits,
        wanted=np.array([[4, 4]]),
        state_sum=np.array(state, dtype=np.float32),
    )


def measured() -> dict[str, QualityRow]:
    requests = [
        finished("code", nll=4.0, exact=True, hits=3, state=(1, 0)),
        finished("math", nll=6.0, hits=1, state=(1, 1)),
    ]
    full = {
        one.row: finished(one.row.task, nll=2.0, exact=one.task == "code", hits=4, state=(1, 0)) for one in requests
    }
    streams = [Stream(requests=[one], num_loaded=3, num_plans=2, plan_seconds=0.5) for one in requests]
    streams[0].resident, streams[1].first_resident = np.array([[True, False]]), np.array([[True, True]])
    outcome = Outcome.of(streams, full)
    rows = measure(outcome, load="single", strategy="emoe", resident_ratio=0.25, expert_bytes=EXPERT_BYTES)
    return {row.task: row for row in rows}


def test_a_task_is_judged_by_its_own_requests() -> None:
    code = measured()["code"]
    assert code.perplexity == pytest.approx(math.exp(2))
    assert code.perplexity_ratio == pytest.approx(math.e)
    assert code.coverage == 3 / 4
    assert code.hit_ratio == 3 / 8
    assert code.similarity == pytest.approx(1.0)
    assert code.num_requests == 1


def test_the_mean_takes_tasks_alike_and_perplexities_geometrically() -> None:
    rows = measured()
    mean = rows[MEAN]
    assert mean.perplexity_ratio == pytest.approx(math.sqrt(math.e * math.e**2))
    assert mean.coverage == pytest.approx(0.5)
    assert mean.similarity == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert mean.num_requests == 2


def test_a_task_has_an_exact_match_where_all_experts_reach_one() -> None:
    rows = measured()
    assert rows["code"].exact_match == 1.0
    assert rows["math"].exact_match is None
    assert rows[MEAN].exact_match == 1.0


def test_bytes_count_changes_within_streams_and_from_one_to_the_next() -> None:
    assert measured()[MEAN].bytes_moved == (3 + 3 + 1) * EXPERT_BYTES // 2
    assert measured()[MEAN].refresh_seconds == pytest.approx(1.0 / 4)


def with_figures(strategy: str, perplexity_ratio: float, coverage: float) -> QualityRow:
    return dataclasses.replace(
        measured()[MEAN], strategy=strategy, perplexity_ratio=perplexity_ratio, coverage=coverage
    )


def test_a_gap_is_closed_by_as_much_of_the_way_from_global_frequency_to_the_oracle() -> None:
    rows = [
        with_figures("global-frequency", 1.5, 0.4),
        with_figures("oracle", 1.1, 0.8),
        with_figures("emoe", 1.2, 0.5),
    ]
    gaps = {gap.strategy: gap for gap in find_gaps(rows)}
    assert gaps["emoe"].perplexity_gap_closed == pytest.approx(0.75)
    assert gaps["emoe"].coverage_gap_closed == pytest.approx(0.25)
    assert gaps["oracle"].coverage_gap_closed == pytest.approx(1.0)
    rows[1] = with_figures("oracle", 1.5, 0.8)
    assert {gap.perplexity_gap_closed for gap in find_gaps(rows)} == {None}


@pytest.mark.parametrize(
    ("shuffled", "nothing"),
    [
        pytest.param((1.2, 0.5), True, id="the same"),
        pytest.param((1.19, 0.51), True, id="better"),
        pytest.param((1.3, 0.5), False, id="perplexity"),
        pytest.param((1.2, 0.4), False, id="coverage"),
    ],
)
def test_labels_are_worth_what_shuffling_costs(shuffled: tuple[float, float], nothing: bool) -> None:
    rows = [with_figures("emoe", 1.2, 0.5), with_figures("emoe-shuffled", *shuffled), with_figures("random", 2, 0.2)]
    (worth,) = find_label_worth(rows)
    assert worth.strategy == "emoe"
    assert worth.is_nothing == nothing
