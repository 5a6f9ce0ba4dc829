"""Which resident expert gives up its slot when exact mode needs one (the `EvictionPolicy` seam)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

import numpy as np

from emoe.core.experts import ExpertId, FloatGrid


class EvictionPolicy(Protocol):
    """Pure but for what it was told: `touch` after use, `pick` when a slot must be freed."""

    def touch(self, layer: int, experts: Collection[int]) -> None: ...

    def set_demand(self, demand: FloatGrid) -> None: ...

    def pick(self, candidates: Collection[ExpertId]) -> ExpertId:
        """One of `candidates`, which is never empty and holds no expert in use."""
        ...


class LruEviction:
    """Least recently used first. A layer is visited in order, so ties break by the lower id."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._last_used = np.zeros(shape, dtype=np.int64)
        self._clock = 0

    def touch(self, layer: int, experts: Collection[int]) -> None:
        self._clock += 1
        self._last_used[layer, list(experts)] = self._clock

    def set_demand(self, demand: FloatGrid) -> None:
        """Recency alone decides."""

    def pick(self, candidates: Collection[ExpertId]) -> ExpertId:
        return min(candidates, key=lambda expert: (self._last_used[expert.layer, expert.index], expert))


class DemandWeightedEviction:
    """Least predicted demand first, recency between equals: experts that the plan wants stay."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._lru = LruEviction(shape)
        self._demand: FloatGrid = np.zeros(shape)

    def touch(self, layer: int, experts: Collection[int]) -> None:
        self._lru.touch(layer, experts)

    def set_demand(self, demand: FloatGrid) -> None:
        self._demand = demand

    def pick(self, candidates: Collection[ExpertId]) -> ExpertId:
        lowest = min(self._demand[expert.layer, expert.index] for expert in candidates)
        return self._lru.pick([e for e in candidates if self._demand[e.layer, e.index] == lowest])


class PinnedEviction:
    """Another policy's choice, from those that are not pinned as long as there are such."""

    def __init__(self, policy: EvictionPolicy, pinned: Collection[ExpertId]) -> None:
        self._policy = policy
        self._pinned = frozenset(pinned)

    def touch(self, layer: int, experts: Collection[int]) -> None:
        self._policy.touch(layer, experts)

    def set_demand(self, demand: FloatGrid) -> None:
        self._policy.set_demand(demand)

    def pick(self, candidates: Collection[ExpertId]) -> ExpertId:
        return self._policy.pick([expert for expert in candidates if expert not in self._pinned] or candidates)


EVICTION_POLICIES: dict[str, Callable[[tuple[int, int]], EvictionPolicy]] = {
    "lru": LruEviction,
    "demand": DemandWeightedEviction,
}
