"""Which experts stay resident, given demand and slots (the `ResidencyPlanner` seam).

Every planner returns at most `num_slots` experts and leaves every layer routable (`RoutingRule.is_routable`).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection
from typing import Protocol

import numpy as np
import numpy.typing as npt

from emoe.core.errors import BudgetError, PlanError
from emoe.core.experts import BoolGrid, ExpertGrid, ExpertId, FloatGrid, RoutingRule
from emoe.core.refresh import favour_pinned


class ResidencyPlanner(Protocol):
    def plan(self, demand: FloatGrid, *, num_slots: int, grid: ExpertGrid) -> BoolGrid:
        """demand [L, E] in expected tokens -> wanted residency [L, E]. BudgetError when no plan is routable."""
        ...


class GlobalGreedyPlanner:
    """The most demanded experts of the whole model, after every layer's routable minimum."""

    def plan(self, demand: FloatGrid, *, num_slots: int, grid: ExpertGrid) -> BoolGrid:
        check_budget(num_slots, grid)
        wanted = np.zeros(grid.shape, dtype=np.bool_)
        for layer in grid.moe_layers:
            wanted[layer] = routable_minimum(demand[layer], grid.rule)
        spare = num_slots - int(wanted.sum())
        closed: set[tuple[int, int]] = set()
        for block in _blocks_by_demand(demand, wanted, grid):
            if len(block.experts) > spare or block.group in closed:
                closed.add(block.group)
                continue
            wanted[block.group[0], block.experts] = True
            spare -= len(block.experts)
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


PLANNERS: dict[str, ResidencyPlanner] = {"global": GlobalGreedyPlanner(), "per-layer": PerLayerTopPlanner()}


def check_pinned(pinned: Collection[ExpertId], grid: ExpertGrid) -> None:
    unknown = [f"{expert.index} of layer {expert.layer}" for expert in pinned if not grid.contains(expert)]
    if unknown:
        raise PlanError(f"pinned experts that this model does not have: {', '.join(unknown)}; pin others, or none")


def routable_minimum(demand_E: npt.NDArray[np.float64], rule: RoutingRule) -> npt.NDArray[np.bool_]:
    """The most demanded set of `rule.min_residents` experts that keeps one layer routable."""
    per_group = rule.min_residents_per_group
    groups = demand_E.reshape(rule.num_groups, -1)
    best = np.argsort(-groups, axis=1, kind="stable")[:, :per_group]
    covered = np.take_along_axis(groups, best, axis=1).sum(axis=1)
    wanted = np.zeros_like(groups, dtype=np.bool_)
    for group in np.argsort(-covered, kind="stable")[: rule.topk_groups]:
        wanted[group, best[group]] = True
    return wanted.reshape(-1)


def check_budget(num_slots: int, grid: ExpertGrid) -> None:
    """BudgetError when no plan of so many slots can be routable."""
    needed = grid.rule.min_residents * len(grid.moe_layers)
    if num_slots < needed:
        raise BudgetError(
            f"{num_slots} slots are too few: {len(grid.moe_layers)} layers need {grid.rule.min_residents} residents "
            f"each, {needed} in all ({needed * grid.expert_bytes} bytes); raise the expert memory"
        )


@dataclasses.dataclass(frozen=True)
class _Block:
    """Experts that come into residency together: one, or the least that brings an unused group into use."""

    group: tuple[int, int]
    experts: npt.NDArray[np.int64]
    mean_demand: float


def _blocks_by_demand(demand: FloatGrid, wanted: BoolGrid, grid: ExpertGrid) -> list[_Block]:
    """What may still be added, most demanded per expert first; a group's own blocks stay in their order."""
    rule = grid.rule
    size = rule.num_experts // rule.num_groups
    blocks: list[_Block] = []
    for layer in grid.moe_layers:
        for group in range(rule.num_groups):
            members = np.arange(group * size, (group + 1) * size)
            missing = members[~wanted[layer, members]]
            ranked = missing[np.argsort(-demand[layer, missing], kind="stable")]
            head = rule.min_residents_per_group if len(missing) == size else 0
            cuts = [0, head, *range(head + 1, len(ranked) + 1)] if head else list(range(len(ranked) + 1))
            for start, stop in itertools.pairwise(cuts):
                experts = ranked[start:stop]
                # The mean of equal numbers may round below them, and a later block would overtake its group's first.
                mean = max(float(demand[layer, experts].mean()), float(demand[layer, experts[-1]]))
                blocks.append(_Block((layer, group), experts, mean))
    return sorted(blocks, key=lambda block: -block.mean_demand)
