"""Which experts stay resident, given demand and slots (the `ResidencyPlanner` seam).

Every planner returns at most `num_slots` experts and leaves every layer routable (`RoutingRule.is_routable`). `global`
and `per-layer` are here, `adapmoe` has a module of its own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import numpy as np

from emoe.core.adapmoe import AdapMoEPlanner
from emoe.core.errors import PlanError
from emoe.core.experts import BoolGrid, ExpertGrid, ExpertId, FloatGrid
from emoe.core.planning_groups import add_blocks
from emoe.core.refresh import favour_pinned
from emoe.core.routable import check_budget, most_demanded, routable_minimum


class ResidencyPlanner(Protocol):
    def plan(self, demand: FloatGrid, *, num_slots: int, grid: ExpertGrid) -> BoolGrid:
        """demand [L, E] in expected tokens -> wanted residency [L, E]. BudgetError when no plan is routable."""
        ...


class GlobalGreedyPlanner:
    """The most demanded experts of the whole model, after every layer's routable minimum.

    No plan covers more demand, unless routing is limited to groups.
    """

    def plan(self, demand: FloatGrid, *, num_slots: int, grid: ExpertGrid) -> BoolGrid:
        check_budget(num_slots, grid)
        layers = list(grid.moe_layers)
        wanted = np.zeros(grid.shape, dtype=np.bool_)
        least = routable_minimum(demand[layers], grid.rule)
        spare = num_slots - int(least.sum())
        if grid.rule.num_groups > 1:
            wanted[layers] = add_blocks(demand[layers], least, grid.rule, spare=spare)
        else:
            wanted[layers] = _add_best(demand[layers], least, spare=spare)
        return wanted


class PerLayerTopPlanner:
    """eMoE section 4.3: the same number of experts in each layer, the most demanded of that layer."""

    def plan(self, demand: FloatGrid, *, num_slots: int, grid: ExpertGrid) -> BoolGrid:
        check_budget(num_slots, grid)
        wanted = np.zeros(grid.shape, dtype=np.bool_)
        share, rest = divmod(num_slots, len(grid.moe_layers))
        for position, layer in enumerate(grid.moe_layers):
            one_layer = ExpertGrid(num_layers=1, moe_layers=(0,), rule=grid.rule, expert_bytes=grid.expert_bytes)
            slots = min(share + (position < rest), grid.rule.num_experts)
            wanted[layer] = GlobalGreedyPlanner().plan(demand[layer : layer + 1], num_slots=slots, grid=one_layer)[0]
        return wanted


class PinnedPlanner:
    """Another planner's plan, with `pinned` wanted more than all else; PlanError if the model lacks one of them."""

    def __init__(self, planner: ResidencyPlanner, pinned: Collection[ExpertId], grid: ExpertGrid) -> None:
        check_pinned(pinned, grid)
        self._planner = planner
        self._pinned = tuple(pinned)

    def plan(self, demand: FloatGrid, *, num_slots: int, grid: ExpertGrid) -> BoolGrid:
        return self._planner.plan(favour_pinned(demand, self._pinned), num_slots=num_slots, grid=grid)


PLANNERS: dict[str, ResidencyPlanner] = {
    "global": GlobalGreedyPlanner(),
    "per-layer": PerLayerTopPlanner(),
    "adapmoe": AdapMoEPlanner(),
}


def check_pinned(pinned: Collection[ExpertId], grid: ExpertGrid) -> None:
    unknown = [f"{expert.index} of layer {expert.layer}" for expert in pinned if not grid.contains(expert)]
    if unknown:
        raise PlanError(f"pinned experts that this model does not have: {', '.join(unknown)}; pin others, or none")


def _add_best(demand_LE: FloatGrid, wanted_LE: BoolGrid, *, spare: int) -> BoolGrid:
    """`wanted` and the `spare` most demanded of the others; equals in the order of layer, then index."""
    best = most_demanded(np.where(wanted_LE, -np.inf, demand_LE).ravel())[:spare]
    added = wanted_LE.copy()
    added.reshape(-1)[best] = True
    return added
