"""For each number of slots of a layer, the experts that cover the most of its demand and keep it routable.

Without groups these are the most demanded ones. In group-limited families a group is unused or holds the least that a
token needs of it (`routable`), so the best set of t + 1 experts need not hold the best set of t: a small programme over
the groups finds them all. Stands under the `adapmoe` planner.
L layers, E experts, G groups, N experts of a group, T slots of a layer, U groups in use (capped at `topk_groups`).
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
import numpy.typing as npt

from emoe.core.experts import BoolGrid, FloatGrid, RoutingRule
from emoe.core.routable import Order, most_demanded

Counts = npt.NDArray[np.int64]


class CoveringSets(Protocol):
    @property
    def total_L(self) -> FloatGrid:
        """Each layer's demand."""
        ...

    @property
    def gained_LE(self) -> FloatGrid:
        """What slot t + 1 covers beyond t; below the routable minimum without meaning."""
        ...

    @property
    def covered_LT(self) -> FloatGrid: ...

    def take(self, slots_L: Counts) -> BoolGrid:
        """[L, E]: the best set of so many experts of each layer, at least the routable minimum."""
        ...


def find_covering_sets(demand_LE: FloatGrid, rule: RoutingRule) -> CoveringSets:
    return _GroupedSets(demand_LE, rule) if rule.num_groups > 1 else _PlainSets(demand_LE)


class _PlainSets:
    def __init__(self, demand_LE: FloatGrid) -> None:
        self._order_LE = most_demanded(demand_LE)
        self.total_L = demand_LE.sum(axis=1)
        self.gained_LE = np.take_along_axis(demand_LE, self._order_LE, axis=1)
        self.covered_LT = _cumulative(self.gained_LE)

    def take(self, slots_L: Counts) -> BoolGrid:
        return _best_of(self._order_LE, slots_L)


@dataclasses.dataclass(frozen=True)
class _Step:
    """One group's turn, [L, U, T]: what was covered before it, and how many of the group are best taken then."""

    before: FloatGrid
    taken: Counts


class _GroupedSets:
    def __init__(self, demand_LE: FloatGrid, rule: RoutingRule) -> None:
        groups_LGN = demand_LE.reshape(len(demand_LE), rule.num_groups, -1)
        self._rule = rule
        self._order_LGN = most_demanded(groups_LGN)
        ranked_LGN = np.take_along_axis(groups_LGN, self._order_LGN, axis=2)
        self._steps, covered_LT = _run_groups(ranked_LGN, rule)
        self._used_LT, self.covered_LT = _at_most(covered_LT)
        self.total_L = demand_LE.sum(axis=1)
        self.gained_LE = np.diff(self.covered_LT, axis=1, prepend=0.0)[:, 1:]

    def take(self, slots_L: Counts) -> BoolGrid:
        layers = np.arange(len(slots_L))
        left_L = self._used_LT[layers, slots_L]
        used_L = np.full(len(slots_L), self._rule.topk_groups)
        counts_LG = np.zeros((len(slots_L), self._rule.num_groups), dtype=np.int64)
        for group in reversed(range(self._rule.num_groups)):
            step = self._steps[group]
            counts_LG[:, group] = step.taken[layers, used_L, left_L]
            left_L = left_L - counts_LG[:, group]
            used_L = _used_before(step, used_L, counts_LG[:, group], left_L, self._rule.topk_groups)
        return _best_of(self._order_LGN, counts_LG).reshape(len(slots_L), -1)


def _run_groups(ranked_LGN: FloatGrid, rule: RoutingRule) -> tuple[list[_Step], FloatGrid]:
    """The steps, and the most that exactly T experts cover with `topk_groups` groups or more in use."""
    num_layers, num_groups, size = ranked_LGN.shape
    covered_LUT = np.full((num_layers, rule.topk_groups + 1, num_groups * size + 1), -np.inf)
    covered_LUT[:, 0, 0] = 0.0
    steps = []
    for group in range(num_groups):
        before, taken = covered_LUT, np.zeros(covered_LUT.shape, dtype=np.int64)
        covered_LUT = before.copy()
        opened = _opened(before)
        of_group_LN = _cumulative(ranked_LGN[:, group])
        reach = group * size + 1
        for count in range(rule.min_residents_per_group, size + 1):
            reached = opened[:, :, :reach] + of_group_LN[:, None, count, None]
            part = covered_LUT[:, 1:, count : count + reach]
            is_better = reached > part
            np.copyto(part, reached, where=is_better)
            taken[:, 1:, count : count + reach][is_better] = count
        steps.append(_Step(before, taken))
    return steps, covered_LUT[:, -1]


def _opened(before_LUT: FloatGrid) -> FloatGrid:
    """[L, U - 1, T]: from where one more group in use leads to 1, 2 ... U groups; more than U count as U."""
    opened = before_LUT[:, :-1].copy()
    np.maximum(opened[:, -1], before_LUT[:, -1], out=opened[:, -1])
    return opened


def _used_before(step: _Step, used_L: Counts, count_L: Counts, left_L: Counts, cap: int) -> Counts:
    """How many groups were in use before one that took `count`; at the cap that may have been as many."""
    layers = np.arange(len(used_L))
    fewer_L = np.maximum(used_L - 1, 0)
    was_capped = (used_L == cap) & (step.before[layers, used_L, left_L] > step.before[layers, fewer_L, left_L])
    return np.where((count_L == 0) | was_capped, used_L, fewer_L)


def _at_most(exactly_LT: FloatGrid) -> tuple[Counts, FloatGrid]:
    """How many of at most T slots are best filled, and the most that they cover; zero below the least."""
    covered_LT = np.maximum.accumulate(exactly_LT, axis=1)
    is_best = exactly_LT == covered_LT
    used_LT = np.maximum.accumulate(np.where(is_best, np.arange(exactly_LT.shape[1]), 0), axis=1)
    return used_LT, np.where(np.isfinite(covered_LT), covered_LT, 0.0)


def _cumulative(values: FloatGrid) -> FloatGrid:
    """Along the last axis, from nothing on."""
    return np.concatenate([np.zeros((*values.shape[:-1], 1)), values.cumsum(axis=-1)], axis=-1)


def _best_of(order: Order, counts: Counts) -> BoolGrid:
    """The first `counts` of each row's order."""
    chosen = np.zeros(order.shape, dtype=np.bool_)
    np.put_along_axis(chosen, order, np.arange(order.shape[-1]) < counts[..., None], axis=-1)
    return chosen
