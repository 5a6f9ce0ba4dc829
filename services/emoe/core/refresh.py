"""What the planner sees instead of bare demand: residents at a premium, and pinned experts above all others.

Stands between demand and planner in the loader. The premium is how much better a newcomer must be than the resident
whose slot it would take, so that two plans from nearly the same demand do not swap experts back and forth. Knows
neither clocks nor workers.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from emoe.core.experts import BoolGrid, ExpertId, FloatGrid


def favour_residents(demand: FloatGrid, resident: BoolGrid, *, margin_ratio: float = 0.1) -> FloatGrid:
    """demand [L, E] with residents raised by `margin_ratio`; between experts that nobody wants, residents come first.

    Planning from it is stable: a plan made with its own outcome as residents comes out the same.
    """
    premium = demand * margin_ratio + np.finfo(np.float64).tiny
    return np.where(resident, demand + premium, demand)


def favour_pinned(demand: FloatGrid, pinned: Collection[ExpertId]) -> FloatGrid:
    """demand [L, E] with `pinned` wanted more than all others together want to be: a planner takes them first."""
    lifted = demand.copy()
    for expert in pinned:
        lifted[expert.layer, expert.index] += 2 * demand.sum() + 1
    return lifted
