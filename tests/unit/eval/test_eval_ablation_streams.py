"""Ablations' own strategies and streams: how long residents stay, what is forgotten, which tasks come."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from emoe.core.experts import BoolGrid, ExpertGrid, RoutingRule
from emoe.core.planning import PLANNERS
from emoe.eval.ablation_policies import Decayed, Kept, Static
from emoe.eval.ablation_streams import MIX_PROMPTS, changing_mix, noisy_labels, shifted_mix, steady_mix
from emoe.eval.profile import RoutingProfile
from emoe.eval.rows import EncodedRow
from emoe.eval.strategies import Known
from emoe.eval.streams import Running

GRID = ExpertGrid(num_layers=1, moe_layers=(0,), rule=RoutingRule(num_experts=4, top_k=1), expert_bytes=10)


@pytest.fixture
def known() -> Known:
    profile = RoutingProfile(frequencies={}, routed_frequencies={}, sensitive={}, answer_tokens={}, own_routing=None)
    return Known(profile=profile, memory=None, grid=GRID, num_slots=1, planner=PLANNERS["global"])


def request(task: str = "a") -> Running:
    return Running(row=EncodedRow(task=task, token_ids=(1, 2, 3), num_prompt_tokens=2), task=task)


class Numbered:
    """Says how often it was asked."""

    num_asked = 0

    def plan(self, running: Sequence[Running]) -> BoolGrid:
        self.num_asked += 1
        return np.array([[True]])


@pytest.mark.parametrize(("every", "asked_at"), [(1, [1, 2, 3, 4, 5, 6]), (2, [1, 3, 5]), (5, [1, 6]), (9, [1])])
def test_residents_stay_for_so_many_prompts(every: int, asked_at: list[int]) -> None:
    inner = Numbered()
    kept, found = Kept(inner, every_prompts=every), []
    for number in range(1, 7):
        before, one = inner.num_asked, request()
        kept.plan([one])
        kept.plan([one])
        found += [number] * (inner.num_asked - before)
    assert found == asked_at


def test_newcomers_that_arrive_together_count_each() -> None:
    inner = Numbered()
    kept = Kept(inner, every_prompts=4)
    for _ in range(4):
        kept.plan([request(), request()])
    assert inner.num_asked == 2


def test_a_decayed_frequency_starts_from_its_prior_and_follows_what_comes(known: Known) -> None:
    decayed = Decayed(known, np.array([[0.7, 0.3, 0, 0]]), half_life_tokens=10.0)
    one = request()
    assert np.flatnonzero(decayed.plan([one])).tolist() == [0]
    for _ in range(6):
        one.phases.append(np.array([[0, 0, 0, 5]]))
        last = decayed.plan([one])
    assert np.flatnonzero(last).tolist() == [3]


def test_the_last_tokens_of_a_request_are_learnt_when_it_is_gone(known: Known) -> None:
    decayed = Decayed(known, np.array([[1.0, 0, 0, 0]]), half_life_tokens=10.0)
    one = request()
    decayed.plan([one])
    one.phases.append(np.array([[0, 0, 40, 0]]))
    one.num_done = 2
    assert one.is_finished
    assert np.flatnonzero(decayed.plan([request()])).tolist() == [2]


def test_a_static_choice_never_moves(known: Known) -> None:
    static = Static(known, np.array([[0.1, 0.9, 0, 0]]))
    assert static.plan([request()]) is static.plan([])


def test_a_changing_mix_stands_for_a_while_and_is_then_another() -> None:
    mixes = changing_mix(50 * MIX_PROMPTS, 4, seed=0)
    assert len(mixes) == 50 * MIX_PROMPTS
    assert mixes.sum(axis=1) == pytest.approx(np.ones(len(mixes)))
    assert len(np.unique(mixes, axis=0)) == pytest.approx(50, rel=0.4)
    changes = np.flatnonzero((mixes[1:] != mixes[:-1]).any(axis=1))
    assert len(set(np.diff(changes).tolist())) > 10, "in step with nothing"


def test_a_steady_mix_has_all_tasks_alike() -> None:
    assert steady_mix(3, 4).tolist() == [[0.25] * 4] * 3


def test_a_shifted_mix_leaves_its_first_tasks_behind() -> None:
    mixes, first = shifted_mix(10, 5, seed=1)
    before, after = mixes[:5].sum(axis=0) > 0, mixes[5:].sum(axis=0) > 0
    assert np.flatnonzero(before).tolist() == sorted(first)
    assert (before ^ after).all()


def test_noise_names_another_task_and_more_noise_only_adds() -> None:
    rows = [EncodedRow(task="abc"[place % 3], token_ids=(1,), num_prompt_tokens=1) for place in range(300)]
    right = [row.task for row in rows]
    assert noisy_labels(rows, 0.0, seed=0) == right
    wrong = [
        {place for place, label in enumerate(noisy_labels(rows, ratio, seed=0)) if label != right[place]}
        for ratio in (0.2, 0.4)
    ]
    assert wrong[0] < wrong[1]
    assert len(wrong[1]) == pytest.approx(120, abs=30)
