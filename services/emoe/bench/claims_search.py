"""The largest size that fits, or the smallest: the ends, doubling, then halving the gap, within a bound on looks.

Knows no engine: it is told of each size whether it fits, and if not, what stood in its way.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Awaitable, Callable


class Verdict(enum.StrEnum):
    FITS = "fits"
    CAP = "memory cap"
    DEADLINE = "deadline"


Look = Callable[[int], Awaitable[Verdict]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """Sizes from `first` to `last`; found to within `precision_ratio` of itself."""

    first: int
    last: int
    last_name: str
    precision_ratio: float
    max_looks: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """`size` None: not even the first one fits. `ended_by`: what kept a larger one away."""

    size: int | None
    ended_by: str


async def find_largest(look: Look, bounds: Bounds) -> Found:
    """A size that fits once is taken to fit always, and with it all smaller ones. The last is asked for second: what
    holds everything is not made to climb there."""
    if (verdict := await look(bounds.first)) is not Verdict.FITS:
        return Found(size=None, ended_by=verdict)
    if bounds.first >= bounds.last:
        return Found(size=bounds.first, ended_by=bounds.last_name)
    if (verdict := await look(bounds.last)) is Verdict.FITS:
        return Found(size=bounds.last, ended_by=bounds.last_name)
    fitting, failing, is_doubling = bounds.first, bounds.last, True
    looks = 2
    while failing - fitting > max(1, bounds.precision_ratio * fitting):
        if looks >= bounds.max_looks:
            return Found(size=fitting, ended_by="number of probes")
        size = min(max(2 * fitting if is_doubling else math.isqrt(fitting * failing), fitting + 1), failing - 1)
        looked, looks = await look(size), looks + 1
        if looked is Verdict.FITS:
            fitting = size
        else:
            failing, verdict, is_doubling = size, looked, False
    return Found(size=fitting, ended_by=verdict)


async def find_smallest(look: Look, *, low: int, high: int, precision: int, max_looks: int) -> int | None:
    """Above `low`, which is taken not to fit; `high` grows by fifths until it does. None when it never does."""
    looks = 0
    while await look(high) is not Verdict.FITS:
        looks += 1
        low, high = high, high + high // 5 + 1
        if looks >= max_looks:
            return None
    while high - low > precision and looks < max_looks:
        middle, looks = (low + high) // 2, looks + 1
        if await look(middle) is Verdict.FITS:
            high = middle
        else:
            low = middle
    return high
