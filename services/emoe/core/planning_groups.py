"""The greedy choice where routing is limited to groups: a group comes into use with several experts at once, or not.

Stands behind `GlobalGreedyPlanner`. A heuristic, as any greedy choice of things of unlike size is; `adapmoe` is exact.
R rows, one a layer and group; E experts of a group.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from emoe.core.experts import BoolGrid, FloatGrid, RoutingRule
from emoe.core.routable import most_demanded


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """Experts that come into residency together: one, or the least that brings an unused group into use.

    Block `p` is the `sizes[p]` experts of `rows[p]` that end at `stops[p]` in the row's order.
    """

    rows: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]


def add_blocks(demand_LE: FloatGrid, wanted_LE: BoolGrid, rule: RoutingRule, *, spare: int) -> BoolGrid:
    """`wanted` and up to `spare` experts more, by the mean demand of what comes together."""
    shape = (-1, rule.num_experts // rule.num_groups)
    demand_RE, wanted_RE = demand_LE.reshape(shape), wanted_LE.reshape(shape).copy()
    order_RE = most_demanded(np.where(wanted_RE, -np.inf, demand_RE))
    ranked_RE = np.take_along_axis(demand_RE, order_RE, axis=1)
    for row, start, stop in _take(_blocks_by_demand(ranked_RE, wanted_RE, rule), spare):
        wanted_RE[row, order_RE[row, start:stop]] = True
    return wanted_RE.reshape(wanted_LE.shape)


def _blocks_by_demand(ranked_RE: FloatGrid, wanted_RE: BoolGrid, rule: RoutingRule) -> _Blocks:
    """What may still be added, most demanded per expert first; a group's own blocks stay in their order."""
    head = rule.min_residents_per_group
    stops_E = np.arange(1, ranked_RE.shape[1] + 1)
    is_unused_R = ~np.asarray(wanted_RE.any(axis=1))
    is_head_RE = is_unused_R[:, None] & (stops_E == head)
    num_missing_R = ranked_RE.shape[1] - wanted_RE.sum(axis=1)
    is_block_RE = (stops_E <= num_missing_R[:, None]) & ~(is_unused_R[:, None] & (stops_E < head))
    # The mean of equal numbers may round below them, and a later block would overtake its group's first.
    mean_R = np.maximum(ranked_RE[:, :head].mean(axis=1), ranked_RE[:, head - 1])
    rows, places = np.nonzero(is_block_RE)
    worth = np.where(is_head_RE, mean_R[:, None], ranked_RE)[rows, places]
    best = most_demanded(worth)
    sizes = np.where(is_head_RE, head, 1)[rows, places]
    return _Blocks(rows[best], places[best] + 1, sizes[best])


def _take(blocks: _Blocks, spare: int) -> list[tuple[int, int, int]]:
    """(row, start, stop) of what fits; after a block that does not, its group gets nothing more."""
    closed: set[int] = set()
    taken = []
    for row, stop, size in zip(blocks.rows.tolist(), blocks.stops.tolist(), blocks.sizes.tolist(), strict=True):
        if not spare:
            break
        if size > spare or row in closed:
            closed.add(row)
            continue
        taken.append((row, stop - size, stop))
        spare -= size
    return taken
