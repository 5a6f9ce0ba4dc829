"""The dynamic programme finds the best split there is, held against trying them all."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emoe.core.adapmoe import AdapMoEPlanner
from emoe.core.adapmoe_split import split_slots
from emoe.core.experts import BoolGrid, ExpertGrid, FloatGrid, RoutingRule
from emoe.core.planning import GlobalGreedyPlanner

PLAIN = RoutingRule(num_experts=8, top_k=2)
GROUPED = [
    RoutingRule(num_experts=10, top_k=3, num_groups=2, topk_groups=1),
    RoutingRule(num_experts=9, top_k=2, num_groups=3, topk_groups=2),
    RoutingRule(num_experts=12, top_k=4, num_groups=3, topk_groups=2, group_score_experts=2),
]
DEMANDS = st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0, 2.5, 9.0])
RATIOS = st.sampled_from([0.0, 0.24, 0.57, 0.94, 1.0])


@st.composite
def problems(draw: st.DrawFn, rules: list[RoutingRule]) -> tuple[FloatGrid, int, ExpertGrid]:
    num_layers, rule = draw(st.integers(1, 3)), draw(st.sampled_from(rules))
    grid = ExpertGrid(num_layers=num_layers, moe_layers=tuple(range(num_layers)), rule=rule, expert_bytes=1)
    size = num_layers * rule.num_experts
    demand = np.array(draw(st.lists(DEMANDS, min_size=size, max_size=size))).reshape(grid.shape)
    return demand, draw(st.integers(rule.min_residents * num_layers, grid.num_experts_total)), grid


def subsets(num: int) -> BoolGrid:
    return np.array(list(itertools.product([False, True], repeat=num)))


def allowed(sets: BoolGrid, rule: RoutingRule) -> BoolGrid:
    """A group is unused or has its least; as many are used as a token picks."""
    counts = sets.reshape(len(sets), rule.num_groups, -1).sum(axis=2)
    used = counts >= rule.min_residents_per_group
    return (used | (counts == 0)).all(axis=1) & (used.sum(axis=1) >= rule.topk_groups)


def loads(sets: BoolGrid, demand: FloatGrid, rule: RoutingRule, single: float, prefetch: float) -> FloatGrid:
    """Expected on-demand loads of one layer's tokens, written as the paper has it: by how many of K are absent."""
    total = demand.sum()
    share = (sets * demand).sum(axis=1) / total if total else np.ones(len(sets))
    no_miss = np.interp(
        share * rule.num_experts,
        range(rule.num_experts + 1),
        [math.comb(t, rule.top_k) / math.comb(rule.num_experts, rule.top_k) for t in range(rule.num_experts + 1)],
    )
    one = single * (1 - share) * (1 - prefetch)
    return total * (one + (1 - single) * (rule.top_k * (1 - share) - prefetch * (1 - no_miss)))


def fewest_loads(tables: list[FloatGrid], num_slots: int) -> float:
    """Of all splits; `tables[l][t]`: the fewest loads of layer l with t experts."""
    counts = itertools.product(*(range(len(table)) for table in tables))
    return min(sum(table[t] for table, t in zip(tables, ts, strict=True)) for ts in counts if sum(ts) <= num_slots)


def table_of(sets: BoolGrid, loads_of_sets: FloatGrid, num_experts: int) -> FloatGrid:
    sizes = sets.sum(axis=1)
    return np.array([loads_of_sets[sizes == t].min(initial=np.inf) for t in range(num_experts + 1)])


@given(problem=problems([PLAIN, *GROUPED]), single=RATIOS, prefetches=st.lists(RATIOS, min_size=3, max_size=3))
@settings(deadline=None, max_examples=60)
def test_no_allowed_plan_loads_less(
    problem: tuple[FloatGrid, int, ExpertGrid], single: float, prefetches: list[float]
) -> None:
    demand, num_slots, grid = problem
    sets = subsets(grid.rule.num_experts)
    sets = sets[allowed(sets, grid.rule)]
    ratios = prefetches[: grid.num_layers]
    wanted = AdapMoEPlanner(prefetch_ratio=ratios, single_ratio=single).plan(demand, num_slots=num_slots, grid=grid)
    assert allowed(wanted, grid.rule).all()
    tables, planned = [], 0.0
    for layer, ratio in enumerate(ratios):
        of_sets = loads(sets, demand[layer], grid.rule, single, ratio)
        tables.append(table_of(sets, of_sets, grid.rule.num_experts))
        planned += loads(wanted[layer : layer + 1], demand[layer], grid.rule, single, ratio)[0]
    assert planned == pytest.approx(fewest_loads(tables, num_slots), abs=1e-9)


@given(
    gains=st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.lists(st.sampled_from([-1.0, 0.0, 0.1, 0.3, 1.0, 5.0]), min_size=width, max_size=width),
            min_size=1,
            max_size=4,
        )
    ),
    num_slots=st.integers(0, 18),
)
@settings(deadline=None, max_examples=300)
def test_no_split_of_slots_gains_more_whatever_the_gains(gains: list[list[float]], num_slots: int) -> None:
    worth = [np.r_[0.0, np.cumsum(row)] for row in gains]
    counts = split_slots(np.array(gains), num_slots)
    assert counts.sum() <= num_slots
    splits = itertools.product(*(range(len(row)) for row in worth))
    best = max(sum(row[t] for row, t in zip(worth, ts, strict=True)) for ts in splits if sum(ts) <= num_slots)
    assert sum(row[t] for row, t in zip(worth, counts, strict=True)) == pytest.approx(best, abs=1e-9)


def paper_loads(t: int, single: float, prefetch: float) -> float:
    """AdapMoE's f for Mixtral: 8 experts, 2 chosen, any t of them in memory."""
    both, one = (8 - t) * (7 - t) / 56, 2 * t * (8 - t) / 56
    of_two = both * (2 * (1 - prefetch) + prefetch) + one * (1 - prefetch)
    return single * (1 - t / 8) * (1 - prefetch) + (1 - single) * of_two


@pytest.mark.parametrize("num_slots", [6, 9, 13, 20, 24])
def test_with_equal_demand_the_split_is_the_papers(num_slots: int) -> None:
    grid = ExpertGrid(num_layers=3, moe_layers=(0, 1, 2), rule=PLAIN, expert_bytes=1)
    singles, prefetches = (0.1, 0.24, 0.5), (0.57, 0.8, 0.94)
    planner = AdapMoEPlanner(prefetch_ratio=prefetches, single_ratio=singles)
    counts = planner.plan(np.ones(grid.shape), num_slots=num_slots, grid=grid).sum(axis=1)
    tables = [
        np.array([math.inf if t < 2 else paper_loads(t, a, b) for t in range(9)])
        for a, b in zip(singles, prefetches, strict=True)
    ]
    planned = sum(table[t] for table, t in zip(tables, counts, strict=True))
    assert planned == pytest.approx(fewest_loads(tables, num_slots))


def test_a_layer_that_prefetches_badly_gets_more_slots() -> None:
    grid = ExpertGrid(num_layers=2, moe_layers=(0, 1), rule=PLAIN, expert_bytes=1)
    planner = AdapMoEPlanner(prefetch_ratio=(0.57, 0.94))
    counts = planner.plan(np.ones(grid.shape), num_slots=9, grid=grid).sum(axis=1)
    assert counts.tolist() == [5, 4]


@given(problem=problems([PLAIN]))
@settings(deadline=None)
def test_without_groups_prefetch_or_skipping_the_greedy_choice_is_the_optimum(
    problem: tuple[FloatGrid, int, ExpertGrid],
) -> None:
    demand, num_slots, grid = problem
    split = AdapMoEPlanner().plan(demand, num_slots=num_slots, grid=grid)
    greedy = GlobalGreedyPlanner().plan(demand, num_slots=num_slots, grid=grid)
    assert demand[split].sum() == pytest.approx(demand[greedy].sum(), rel=1e-12)


def test_a_group_that_the_greedy_choice_has_no_room_for_is_opened() -> None:
    """Two slots are left: greedy takes the best single expert, and then the better pair finds no room."""
    rule = RoutingRule(num_experts=8, top_k=2, num_groups=2, topk_groups=1)
    grid = ExpertGrid(num_layers=1, moe_layers=(0,), rule=rule, expert_bytes=1)
    demand = np.array([[9.0, 9.0, 5.0, 0.0, 8.0, 1.0, 0.0, 0.0]])
    greedy = GlobalGreedyPlanner().plan(demand, num_slots=4, grid=grid)
    split = AdapMoEPlanner().plan(demand, num_slots=4, grid=grid)
    assert (demand[greedy].sum(), demand[split].sum()) == (23.0, 27.0)
    assert rule.is_routable(split[0])


@pytest.mark.parametrize("ratio", [-0.1, 1.1, (0.5, 2.0)])
def test_a_ratio_beyond_0_to_1_is_refused(ratio: float | tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        AdapMoEPlanner(prefetch_ratio=ratio)
