"""`RoutingRule.is_routable` against a router that really picks groups and then experts, V2's way and V3's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emoe.core.experts import ExpertGrid, ExpertId, RoutingRule, from_grid, to_grid

FloatRows = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

RULES = {
    "plain": RoutingRule(num_experts=12, top_k=3),
    "v2": RoutingRule(num_experts=16, top_k=4, num_groups=4, topk_groups=2, group_score_experts=1),
    "v2-uneven": RoutingRule(num_experts=20, top_k=5, num_groups=5, topk_groups=3, group_score_experts=1),
    "v3": RoutingRule(num_experts=16, top_k=4, num_groups=4, topk_groups=2, group_score_experts=2),
    "v3-wide": RoutingRule(num_experts=24, top_k=3, num_groups=6, topk_groups=3, group_score_experts=2),
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def route(scores_TE: FloatRows, resident_E: Mask, rule: RoutingRule) -> npt.NDArray[np.int64]:
    """[T, K]: the experts that a group-limited router picks when absent experts score minus infinity everywhere."""
    num_tokens = len(scores_TE)
    masked_TE = np.where(resident_E, scores_TE, -np.inf)
    groups_TGE = masked_TE.reshape(num_tokens, rule.num_groups, -1)
    group_scores_TG = np.sort(groups_TGE, axis=2)[:, :, -rule.group_score_experts :].sum(axis=2)
    picked_TG = np.argsort(-group_scores_TG, axis=1, kind="stable")[:, : rule.topk_groups]
    open_TG = np.zeros_like(group_scores_TG, dtype=np.bool_)
    np.put_along_axis(open_TG, picked_TG, True, axis=1)
    final_TE = np.where(open_TG[:, :, None], groups_TGE, -np.inf).reshape(num_tokens, -1)
    chosen_TK = np.argsort(-final_TE, axis=1, kind="stable")[:, : rule.top_k]
    return np.asarray(np.where(np.take_along_axis(final_TE, chosen_TK, axis=1) == -np.inf, -1, chosen_TK))


def adversarial_scores(resident_E: Mask, rule: RoutingRule) -> FloatRows:
    """[1, E]: scores under which a token prefers the eligible groups with the fewest residents."""
    counts_G = resident_E.reshape(rule.num_groups, -1).sum(axis=1)
    scores_GE = np.repeat(-counts_G.astype(np.float64)[:, None], rule.num_experts // rule.num_groups, axis=1)
    return scores_GE.reshape(1, -1)


@each_rule
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_no_token_picks_an_absent_expert_when_the_rule_says_routable(data: st.DataObject, rule: RoutingRule) -> None:
    resident_E = np.array(data.draw(st.lists(st.booleans(), min_size=rule.num_experts, max_size=rule.num_experts)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    scores_TE = np.concatenate([rng.normal(size=(64, rule.num_experts)), adversarial_scores(resident_E, rule)])
    chosen_TK = route(scores_TE, resident_E, rule)
    if rule.is_routable(resident_E):
        assert (chosen_TK >= 0).all()
        assert resident_E[chosen_TK].all()


@each_rule
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_some_token_finds_too_few_experts_when_the_rule_says_not_routable(
    data: st.DataObject, rule: RoutingRule
) -> None:
    resident_E = np.array(data.draw(st.lists(st.booleans(), min_size=rule.num_experts, max_size=rule.num_experts)))
    counts_G = resident_E.reshape(rule.num_groups, -1).sum(axis=1)
    ineligible_help = ((counts_G > 0) & (counts_G < rule.group_score_experts)).any()
    if not rule.is_routable(resident_E) and not ineligible_help:
        assert (route(adversarial_scores(resident_E, rule), resident_E, rule) == -1).any()


@each_rule
def test_all_residents_are_routable_and_none_are_not(rule: RoutingRule) -> None:
    assert rule.is_routable(np.ones(rule.num_experts, dtype=np.bool_))
    assert not rule.is_routable(np.zeros(rule.num_experts, dtype=np.bool_))


@each_rule
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_one_resident_group_set_of_the_minimum_size_is_routable(data: st.DataObject, rule: RoutingRule) -> None:
    groups = data.draw(st.permutations(range(rule.num_groups)))[: rule.topk_groups]
    size = rule.num_experts // rule.num_groups
    resident_GE = np.zeros((rule.num_groups, size), dtype=np.bool_)
    for group in groups:
        resident_GE[group, data.draw(st.permutations(range(size)))[: rule.min_residents_per_group]] = True
    assert resident_GE.sum() == rule.min_residents
    assert rule.is_routable(resident_GE.reshape(-1))


@given(st.sets(st.tuples(st.integers(0, 2), st.integers(0, 3)).map(lambda pair: ExpertId(*pair))))
def test_a_set_of_experts_survives_its_grid(experts: set[ExpertId]) -> None:
    listed = list(from_grid(to_grid(experts, (3, 4))))
    assert set(listed) == experts
    assert listed == sorted(listed)


def test_a_grid_holds_the_experts_of_moe_layers_only() -> None:
    grid = ExpertGrid(num_layers=3, moe_layers=(1, 2), rule=RoutingRule(num_experts=4, top_k=2), expert_bytes=8)
    assert grid.num_experts_total == 8
    assert int(grid.all_experts().sum()) == 8
    assert grid.contains(ExpertId(1, 3))
    assert not grid.contains(ExpertId(0, 0)), "layer 0 is dense"
    assert not grid.contains(ExpertId(1, 4))
    assert not grid.contains(ExpertId(-1, 0))
    assert not grid.contains(ExpertId(1, -1))
