"""AdapMoE's split of the slots among layers: the fewest expected on-demand loads (`adapmoe` among the planners).

The expected loads f of one token in a layer of E experts, K chosen, are those of AdapMoE (arXiv 2408.10284, the cache
split by dynamic programming), which gives them for E = 8 and K = 2 with t slots holding any t experts. Here the share
of demand that a layer's best t experts cover, h, stands in for the paper's t / E, so that a layer with a few favourites
needs fewer slots; with equal demand the two are the same number. A layer weighs as much as its demand: tokens times
sensitivity.

Against the global greedy choice: f falls ever more slowly with t where the covered demand grows ever more slowly, which
is so unless routing is limited to groups. Without groups, then, taking the largest gains one by one is the programme's
optimum, and with neither prefetch nor skipped experts, as in this engine, the plan is the greedy one. The two differ
where a layer's prefetch or skipping makes its slots worth less than another's, and where groups come into use several
experts at a time: there the greedy choice may miss the best split and this one does not.
L MoE layers, E experts, T slots of a layer (from 0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from emoe.core.adapmoe_split import split_slots
from emoe.core.covering import CoveringSets, find_covering_sets
from emoe.core.experts import BoolGrid, ExpertGrid, FloatGrid, RoutingRule
from emoe.core.planning_groups import add_blocks
from emoe.core.routable import check_budget

Ratios = float | Sequence[float]
"""One for all MoE layers, or one each."""


class AdapMoEPlanner:
    """`prefetch_ratio`: how often one of a token's absent experts is there in time all the same, b in the paper;
    `single_ratio`: tokens that take their first expert only, a in the paper. Both 0 here: emoe does neither."""

    def __init__(self, *, prefetch_ratio: Ratios = 0.0, single_ratio: Ratios = 0.0) -> None:
        self._prefetch_ratio = _checked(prefetch_ratio)
        self._single_ratio = _checked(single_ratio)

    def plan(self, demand: FloatGrid, *, num_slots: int, grid: ExpertGrid) -> BoolGrid:
        check_budget(num_slots, grid)
        layers = list(grid.moe_layers)
        sets = find_covering_sets(demand[layers], grid.rule)
        least = grid.rule.min_residents
        extra_L = split_slots(self._gains(sets, grid.rule)[:, least:], num_slots - least * len(layers))
        chosen = sets.take(extra_L + least)
        wanted = np.zeros(grid.shape, dtype=np.bool_)
        # A slot that saves no load is filled all the same: demand may change before the plan does.
        wanted[layers] = add_blocks(demand[layers], chosen, grid.rule, spare=num_slots - int(chosen.sum()))
        return wanted

    def _gains(self, sets: CoveringSets, rule: RoutingRule) -> FloatGrid:
        """[L, E]: loads that the layer's slot T + 1 saves."""
        prefetch_L1, single_L1 = self._prefetch_ratio[:, None], self._single_ratio[:, None]
        per_share = single_L1 * (1 - prefetch_L1) + (1 - single_L1) * rule.top_k
        gains = per_share * sets.gained_LE
        lost = prefetch_L1 * (1 - single_L1)
        if not lost.any():  # kept apart: the gains are then multiples of demand, without rounding
            return gains
        total_L1 = sets.total_L[:, None]
        share_LT = np.divide(sets.covered_LT, total_L1, out=np.zeros_like(sets.covered_LT), where=total_L1 > 0)
        return np.asarray(gains - lost * total_L1 * np.diff(chance_of_no_miss(share_LT, rule), axis=1))


def chance_of_no_miss(share: FloatGrid, rule: RoutingRule) -> FloatGrid:
    """That all K of a token's experts are among residents covering `share` of the demand: C(x, K) / C(E, K) for
    x = share * E, the paper's 1 - q_1 - q_2; linear between whole x, so that to cover more never costs loads."""
    table = [math.comb(count, rule.top_k) for count in range(rule.num_experts + 1)]
    chances = np.array(table, dtype=np.float64) / table[-1]
    return np.asarray(np.interp(share * rule.num_experts, np.arange(rule.num_experts + 1), chances))


def _checked(ratios: Ratios) -> npt.NDArray[np.float64]:
    checked = np.atleast_1d(np.asarray(ratios, dtype=np.float64))
    if not ((checked >= 0) & (checked <= 1)).all():
        raise ValueError(f"ratios are from 0 to 1, not {ratios}")
    return checked
