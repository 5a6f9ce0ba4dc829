"""The highest load at which a share of the requests is still served in time, by bisection.

Attainment need not fall with every bit of load: what is found is a load that passes beside one, a little higher, that
does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

FIRST_STEP = 1.5
MAX_STEP = 2.0
MAX_STEPS = 24
LEAST_SHARE = 1 / 64
"""Of the first load tried: below it there is none."""


def find_goodput(
    passes: Callable[[float], bool], begin_rps: float, *, precision: float, first_step: float = FIRST_STEP
) -> float:
    """Within `precision` of itself; 0 where even little load does not pass. `passes` is asked for about ten loads."""
    low, high = _bracket(passes, begin_rps, first_step)
    if low == 0.0 or math.isinf(high):
        return low
    while high / low > 1 + precision:
        middle = math.sqrt(low * high)
        if passes(middle):
            low = middle
        else:
            high = middle
    return low


def _bracket(passes: Callable[[float], bool], begin_rps: float, step: float) -> tuple[float, float]:
    """(a load that passes or 0, a load that does not or infinity), steps growing on the way."""
    load = begin_rps
    if passes(load):
        for _ in range(MAX_STEPS):
            if not passes(load * step):
                return load, load * step
            load, step = load * step, min(step * step, MAX_STEP)
        return load, math.inf
    while load > begin_rps * LEAST_SHARE:
        if passes(load / step):
            return load / step, load
        load, step = load / step, min(step * step, MAX_STEP)
    return 0.0, load
