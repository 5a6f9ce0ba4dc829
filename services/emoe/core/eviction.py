"""Which resident expert gives up its slot when exact mode needs one (the `EvictionPolicy` seam)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import numpy as np

from emoe.core.experts import ExpertId, FloatGrid

KEPT_A_TOKEN = 0.9
"""Of what is known of a layer's choices; a token adds the rest. Least misses of 0.9, 0.95, 0.97 and 0.99 on traces of
single requests, decoding at 25 % of the slots."""


class EvictionPolicy(Protocol):
    """Pure but for what it was told: `touch` on use, `pick` when a slot must be freed."""

    def touch(self, layer: int, tokens_of: Mapping[int, int]) -> None:
        """`tokens_of`: how many tokens of the step chose an expert of the layer; none that nobody chose."""
        ...

    def set_demand(self, demand: FloatGrid) -> None: ...

    def pick(self, candidates: Collection[ExpertId]) -> ExpertId:
        """One of `candidates`, which is never empty and holds no expert in use."""
        ...

    def spare(self, candidates: Collection[ExpertId], *, chance: float) -> ExpertId | None:
        """As `pick`, for a newcomer that a choice falls on with `chance`; None where each candidate may be worth
        more."""
        ...


class LruEviction:
    """Least recently used first. A layer is visited in order, so ties break by the lower id."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._last_used = np.zeros(shape, dtype=np.int64)
        self._clock = 0

    def touch(self, layer: int, tokens_of: Mapping[int, int]) -> None:
        self._clock += 1
        self._last_used[layer, list(tokens_of)] = self._clock

    def set_demand(self, demand: FloatGrid) -> None:
        """Recency alone decides."""

    def pick(self, candidates: Collection[ExpertId]) -> ExpertId:
        return min(candidates, key=lambda expert: (self._last_used[expert.layer, expert.index], expert))

    def spare(self, candidates: Collection[ExpertId], *, chance: float) -> ExpertId | None:  # noqa: ARG002
        """Recency knows no chance."""
        return self.pick(candidates)


class FrequencyEviction:
    """First whom the fewest of the layer's recent choices fell on, recency between equals.

    A layer's shares of choices fade token by token, so a long prompt counts for all that went before, and a prefill
    that passes through every expert leaves those it used most."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._lru = LruEviction(shape)
        self._share: FloatGrid = np.zeros(shape)

    def touch(self, layer: int, tokens_of: Mapping[int, int]) -> None:
        self._lru.touch(layer, tokens_of)
        if not tokens_of:
            return
        # Where no token chooses twice there were at least so many; batches of requests fade more slowly by it.
        kept = KEPT_A_TOKEN ** max(tokens_of.values())
        self._share[layer] *= kept
        shares = np.array(list(tokens_of.values())) / sum(tokens_of.values())
        self._share[layer, list(tokens_of)] += (1 - kept) * shares

    def set_demand(self, demand: FloatGrid) -> None:
        """What was chosen decides."""

    def pick(self, candidates: Collection[ExpertId]) -> ExpertId:
        lowest = min(self._share[expert] for expert in candidates)
        return self._lru.pick([expert for expert in candidates if self._share[expert] == lowest])

    def spare(self, candidates: Collection[ExpertId], *, chance: float) -> ExpertId | None:
        picked = self.pick(candidates)
        return picked if self._share[picked] < chance else None


class DemandWeightedEviction:
    """Least predicted demand first, recency between equals: experts that the plan wants stay."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._lru = LruEviction(shape)
        self._demand: FloatGrid = np.zeros(shape)

    def touch(self, layer: int, tokens_of: Mapping[int, int]) -> None:
        self._lru.touch(layer, tokens_of)

    def set_demand(self, demand: FloatGrid) -> None:
        self._demand = demand

    def pick(self, candidates: Collection[ExpertId]) -> ExpertId:
        lowest = min(self._demand[expert.layer, expert.index] for expert in candidates)
        return self._lru.pick([e for e in candidates if self._demand[e.layer, e.index] == lowest])

    def spare(self, candidates: Collection[ExpertId], *, chance: float) -> ExpertId | None:  # noqa: ARG002
        """Demand is no chance of this token's."""
        return self.pick(candidates)


class PinnedEviction:
    """Another policy's choice, from those that are not pinned as long as there are such."""

    def __init__(self, policy: EvictionPolicy, pinned: Collection[ExpertId]) -> None:
        self._policy = policy
        self._pinned = frozenset(pinned)

    def touch(self, layer: int, tokens_of: Mapping[int, int]) -> None:
        self._policy.touch(layer, tokens_of)

    def set_demand(self, demand: FloatGrid) -> None:
        self._policy.set_demand(demand)

    def pick(self, candidates: Collection[ExpertId]) -> ExpertId:
        return self._policy.pick([expert for expert in candidates if expert not in self._pinned] or candidates)

    def spare(self, candidates: Collection[ExpertId], *, chance: float) -> ExpertId | None:
        free = [expert for expert in candidates if expert not in self._pinned]
        return self._policy.spare(free, chance=chance) if free else None


EVICTION_POLICIES: dict[str, Callable[[tuple[int, int]], EvictionPolicy]] = {
    "frequency": FrequencyEviction,
    "lru": LruEviction,
    "demand": DemandWeightedEviction,
}
