"""The nouns of expert residency: one expert, the grid of all of them, a set of them.

A grid has a row for every hidden layer of the model, dense layers too, so that a layer's index is the model's own.
L layers, E experts a layer, K experts a token (top-k).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

BoolGrid = npt.NDArray[np.bool_]
FloatGrid = npt.NDArray[np.float64]
CountGrid = npt.NDArray[np.int64]


class ExpertId(NamedTuple):
    """One routed expert: the model's own layer index, and the expert's index in that layer."""

    layer: int
    index: int  # type: ignore[assignment]  # hides tuple.index(), which nobody needs here


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoutingRule:
    """How a family's router picks K of E experts, as far as residency must know it.

    `num_groups` > 1 is group-limited routing (DeepSeek-V2 section 2.2.2, DeepSeek-V3 section 2.1.2): a token first
    picks `topk_groups` groups by the sum of each group's best `group_score_experts` scores, then its experts in them.
    """

    num_experts: int
    top_k: int
    num_groups: int = 1
    topk_groups: int = 1
    group_score_experts: int = 1

    @property
    def min_residents(self) -> int:
        """So many residents, spread evenly over `topk_groups` groups, let every token find K experts."""
        return self.min_residents_per_group * self.topk_groups

    @property
    def min_residents_per_group(self) -> int:
        return max(-(-self.top_k // self.topk_groups), self.group_score_experts)

    def is_routable(self, resident_E: npt.NDArray[np.bool_]) -> bool:
        """Whether any token, whatever its scores, finds K resident experts."""
        counts = np.sort(resident_E.reshape(self.num_groups, -1).sum(axis=1))
        eligible = counts[counts >= self.group_score_experts]
        return int(eligible[: self.topk_groups].sum()) >= self.top_k


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertGrid:
    """What is known of a model's experts without opening them."""

    num_layers: int
    moe_layers: tuple[int, ...]
    rule: RoutingRule
    expert_bytes: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.num_layers, self.rule.num_experts

    @property
    def num_experts_total(self) -> int:
        return len(self.moe_layers) * self.rule.num_experts

    def contains(self, expert: ExpertId) -> bool:
        return expert.layer in self.moe_layers and 0 <= expert.index < self.rule.num_experts

    def all_experts(self) -> BoolGrid:
        grid = np.zeros(self.shape, dtype=np.bool_)
        grid[list(self.moe_layers)] = True
        return grid


def to_grid(experts: Iterable[ExpertId], shape: tuple[int, int]) -> BoolGrid:
    grid = np.zeros(shape, dtype=np.bool_)
    for layer, index in experts:
        grid[layer, index] = True
    return grid


def from_grid(grid: BoolGrid) -> Iterator[ExpertId]:
    """In the order of layer, then index."""
    for layer, index in zip(*np.nonzero(grid), strict=True):
        yield ExpertId(int(layer), int(index))
