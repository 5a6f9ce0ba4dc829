"""Eviction picks among the candidates alone: the least recently used, or the least in demand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emoe.core.eviction import (
    EVICTION_POLICIES,
    DemandWeightedEviction,
    EvictionPolicy,
    FrequencyEviction,
    LruEviction,
    PinnedEviction,
)
from emoe.core.experts import ExpertId

SHAPE = (2, 4)
EXPERTS = [ExpertId(layer, index) for layer in range(SHAPE[0]) for index in range(SHAPE[1])]
each_policy = pytest.mark.parametrize("make", EVICTION_POLICIES.values(), ids=EVICTION_POLICIES.keys())
USES = st.lists(st.tuples(st.integers(0, 1), st.sets(st.integers(0, 3))), max_size=20)


@each_policy
@given(uses=USES, demand=st.lists(st.sampled_from([0.0, 0.5, 2.0]), min_size=8, max_size=8), data=st.data())
def test_eviction_never_picks_outside_the_candidates(
    make: Callable[[tuple[int, int]], EvictionPolicy],
    uses: list[tuple[int, set[int]]],
    demand: list[float],
    data: st.DataObject,
) -> None:
    policy = make(SHAPE)
    policy.set_demand(np.array(demand).reshape(SHAPE))
    for layer, experts in uses:
        policy.touch(layer, dict.fromkeys(experts, 1))
    candidates = data.draw(st.sets(st.sampled_from(EXPERTS), min_size=1))
    assert policy.pick(candidates) in candidates
    assert policy.spare(candidates, chance=0.5) in {*candidates, None}


@given(order=st.permutations(EXPERTS))
def test_lru_gives_up_experts_in_the_order_of_their_last_use(order: list[ExpertId]) -> None:
    policy = LruEviction(SHAPE)
    for expert in order:
        policy.touch(expert.layer, {expert.index: 1})
    left, picked = set(EXPERTS), []
    while left:
        picked.append(policy.pick(left))
        left.remove(picked[-1])
    assert picked == order


def test_lru_prefers_what_was_never_used_and_then_the_lower_id() -> None:
    policy = LruEviction(SHAPE)
    policy.touch(0, {0: 1})
    assert policy.pick(EXPERTS) == ExpertId(0, 1)


def test_experts_of_one_step_are_equally_recent() -> None:
    policy = LruEviction(SHAPE)
    policy.touch(0, {3: 1, 2: 1})
    assert policy.pick([ExpertId(0, 3), ExpertId(0, 2)]) == ExpertId(0, 2)


@given(demand=st.lists(st.floats(0, 1e6), min_size=8, max_size=8), uses=USES)
def test_demand_weighted_gives_up_the_least_demanded_whatever_its_use(
    demand: list[float], uses: list[tuple[int, set[int]]]
) -> None:
    policy = DemandWeightedEviction(SHAPE)
    grid = np.array(demand).reshape(SHAPE)
    policy.set_demand(grid)
    for layer, experts in uses:
        policy.touch(layer, dict.fromkeys(experts, 1))
    assert grid[policy.pick(EXPERTS)] == grid.min()


def test_demand_weighted_breaks_ties_by_recency() -> None:
    policy = DemandWeightedEviction(SHAPE)
    policy.set_demand(np.array([[1.0, 1.0, 9.0, 9.0], [9.0] * 4]))
    policy.touch(0, {0: 1})
    assert policy.pick(EXPERTS) == ExpertId(0, 1)


def test_frequency_keeps_what_many_tokens_of_a_prompt_chose_whatever_layer_came_last() -> None:
    policy = FrequencyEviction(SHAPE)
    policy.touch(0, {0: 30, 1: 2, 2: 1, 3: 1})
    policy.touch(1, {0: 2, 1: 2, 2: 2, 3: 28})
    left, picked = set(EXPERTS), []
    while left:
        picked.append(policy.pick(left))
        left.remove(picked[-1])
    assert set(picked[-2:]) == {ExpertId(0, 0), ExpertId(1, 3)}


def test_frequency_forgets_one_prompt_for_the_next() -> None:
    policy = FrequencyEviction(SHAPE)
    policy.touch(0, {0: 100, 1: 1})
    policy.touch(0, {2: 100, 1: 2})
    assert policy.pick([ExpertId(0, 0), ExpertId(0, 1), ExpertId(0, 2)]) == ExpertId(0, 0)


def test_frequency_spares_no_expert_for_a_newcomer_of_less_chance() -> None:
    policy = FrequencyEviction(SHAPE)
    policy.touch(0, {0: 50, 1: 50})
    both = [ExpertId(0, 0), ExpertId(0, 1)]
    assert policy.spare(both, chance=0.4) is None
    assert policy.spare(both, chance=0.6) == ExpertId(0, 0)


@each_policy
@given(pinned=st.sets(st.sampled_from(EXPERTS)), candidates=st.sets(st.sampled_from(EXPERTS), min_size=1))
def test_a_pinned_expert_is_picked_only_when_there_is_no_other(
    make: Callable[[tuple[int, int]], EvictionPolicy], pinned: set[ExpertId], candidates: set[ExpertId]
) -> None:
    picked = PinnedEviction(make(SHAPE), pinned).pick(candidates)
    assert picked in candidates
    assert (picked in pinned) == (candidates <= pinned)
    assert PinnedEviction(make(SHAPE), pinned).spare(candidates, chance=0.5) not in pinned
