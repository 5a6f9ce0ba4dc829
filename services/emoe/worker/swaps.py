"""Whether a plan can be, in which order its newcomers come and who is unwanted goes: pure, for `residency`.

Where routing is limited to groups, experts come and go so that whole groups become usable and dispensable in turn.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from emoe.core.errors import PlanError
from emoe.core.experts import BoolGrid, ExpertGrid, ExpertId, FloatGrid, RoutingRule, from_grid


def check_plan(wanted: BoolGrid, grid: ExpertGrid, *, num_slots: int, keep_routable: bool) -> None:
    """PlanError if it is too large, for another model, or leaves a layer unroutable."""
    if wanted.shape != grid.shape:
        raise PlanError(f"a plan of shape {wanted.shape} does not fit this model of {grid.shape}")
    if wanted.sum() > num_slots:
        raise PlanError(f"a plan of {int(wanted.sum())} experts does not fit {num_slots} slots")
    for layer in grid.moe_layers if keep_routable else ():
        if not grid.rule.is_routable(wanted[layer]):
            raise PlanError(f"a plan that keeps {int(wanted[layer].sum())} experts leaves layer {layer} unroutable")


def is_routable_without(leaving: list[ExpertId], resident: BoolGrid, rule: RoutingRule) -> bool:
    """`leaving` are of one layer."""
    rest = resident[leaving[0].layer].copy()
    rest[[expert.index for expert in leaving]] = False
    return rule.is_routable(rest)


def loading_order(missing: BoolGrid, weights: FloatGrid, rule: RoutingRule) -> list[ExpertId]:
    """Layer by layer, the most wanted first, but group by group: staging soon holds a whole new routing group."""
    experts = list(from_grid(missing))
    of_group: dict[tuple[int, int], float] = {}
    for expert in experts:
        key = _group(expert, rule)
        of_group[key] = max(of_group.get(key, 0.0), float(weights[expert]))
    return sorted(
        experts, key=lambda e: (e.layer, -of_group[_group(e, rule)], _group(e, rule), -float(weights[e]), e.index)
    )


def leaving_order(unwanted: BoolGrid, rule: RoutingRule, *, first_layer: int) -> Iterator[list[ExpertId]]:
    """Sets of one layer's experts that might be freed together, the smallest first: one expert, then all of a group,
    for one that can only go as a whole. Those of `first_layer`, where the newcomer belongs, stand before others."""
    experts = sorted(from_grid(unwanted), key=lambda e: (e.layer != first_layer, e))
    yield from ([expert] for expert in experts)
    if rule.num_groups > 1:
        yield from (list(group) for _, group in itertools.groupby(experts, key=lambda e: _group(e, rule)))


def _group(expert: ExpertId, rule: RoutingRule) -> tuple[int, int]:
    return expert.layer, expert.index // (rule.num_experts // rule.num_groups) if rule.num_groups > 1 else 0
