"""How much better a newcomer must be than the resident whose slot it would take.

Stands between demand and planner in the loader: the planner sees residents at a premium, so that two plans from nearly
the same demand do not swap experts back and forth. Knows neither clocks nor workers.
"""

from __future__ import annotations

import numpy as np

from emoe.core.experts import BoolGrid, FloatGrid


def favour_residents(demand: FloatGrid, resident: BoolGrid, *, margin_ratio: float = 0.1) -> FloatGrid:
    """demand [L, E] with residents raised by `margin_ratio`; between experts that nobody wants, residents come first.

    Planning from it is stable: a plan made with its own outcome as residents comes out the same.
    """
    premium = demand * margin_ratio + np.finfo(np.float64).tiny
    return np.where(resident, demand + premium, demand)
