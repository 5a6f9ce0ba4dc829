"""What several workers keep between them while a trace is replayed: looks at their residents, held against demand.

The cluster's coverage is the share of demand that some worker's residents meet; what a request could use of it is the
coverage of the worker that it was sent to. Knows neither services nor how residents were looked at.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from emoe.core.experts import BoolGrid, FloatGrid
from emoe.eval.replay import ClusterFigures, Outcome


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """Worker -> residents [L, E]. `at_seconds` is on the replay's clock."""

    at_seconds: float
    resident: Mapping[str, BoolGrid]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ClusterRecord:
    """`demand`: task -> [L, E] of its tokens, as known at the end. Looks in order of time."""

    looks: Sequence[Look]
    demand: Mapping[str, FloatGrid]

    def figures(self, outcomes: Sequence[Outcome], window_seconds: tuple[float, float] | None) -> ClusterFigures:
        """Of these requests, and of what was resident within the window."""
        looks = self._within(*window_seconds) if window_seconds else self.looks
        unions = [np.any(list(look.resident.values()), axis=0) for look in looks if look.resident]
        answered = [outcome for outcome in outcomes if outcome.task in self.demand and not outcome.refusal]
        return ClusterFigures(
            cluster_coverage=self._union_coverage(unions, answered),
            sent_coverage=self._sent_coverage(answered),
            distinct_experts=float(np.mean([union.sum() for union in unions])) if unions else None,
        )

    def _within(self, begin: float, end: float) -> Sequence[Look]:
        """With the look before the first: what it saw still stood then."""
        times = [look.at_seconds for look in self.looks]
        return self.looks[max(0, bisect.bisect_right(times, begin) - 1) : bisect.bisect_left(times, end)]

    def _union_coverage(self, unions: Sequence[BoolGrid], answered: Sequence[Outcome]) -> float | None:
        sizes: collections.Counter[str] = collections.Counter()
        for outcome in answered:
            sizes[outcome.task] += outcome.num_tokens
        return _weighted([(_share(self.demand[task], union), size) for task, size in sizes.items() for union in unions])

    def _sent_coverage(self, answered: Sequence[Outcome]) -> float | None:
        """Of each request, by the residents that its worker had when it began there."""
        times = [look.at_seconds for look in self.looks]
        found: list[tuple[float, float]] = []
        for outcome in answered:
            place = max(0, bisect.bisect_right(times, outcome.began_seconds) - 1)
            resident = self.looks[place].resident.get(outcome.worker_id) if self.looks else None
            if resident is not None:
                found.append((_share(self.demand[outcome.task], resident), outcome.num_tokens))
        return _weighted(found)


def _share(demand: FloatGrid, resident: BoolGrid) -> float:
    return float(demand[resident].sum() / demand.sum())


def _weighted(shares: Sequence[tuple[float, float]]) -> float | None:
    """Of (share, weight)."""
    total = sum(weight for _, weight in shares)
    return sum(share * weight for share, weight in shares) / total if total else None
