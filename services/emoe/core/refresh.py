"""What the planner sees instead of bare demand, and how often demand is worth foretelling anew.

Stands between demand and planner in the loader. Residents have a premium: how much better a newcomer must be than the
resident whose slot it would take, so that two plans from nearly the same demand do not swap experts back and forth.
Pinned experts stand above all others. Knows neither clocks nor workers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

import numpy as np

from emoe.core.experts import BoolGrid, ExpertId, FloatGrid

RefreshInterval = int | Literal["auto"]
"""Prompts between two predictions, eMoE's p; auto: chosen by drift."""

IDLE_RATIO = 1e-9
"""Of the largest demand: what a resident is raised by at least. Less would be lost where a planner adds demands up."""


def favour_residents(demand: FloatGrid, resident: BoolGrid, *, margin_ratio: float = 0.1) -> FloatGrid:
    """demand [L, E] with residents raised by `margin_ratio`; between experts that nobody wants, residents come first.

    Planning from it is stable: a plan made with its own outcome as residents comes out the same.
    """
    least = max(IDLE_RATIO * demand.max(initial=0.0), np.finfo(np.float64).tiny)
    premium = demand * margin_ratio + least
    return np.where(resident, demand + premium, demand)


def favour_pinned(demand: FloatGrid, pinned: Collection[ExpertId]) -> FloatGrid:
    """demand [L, E] with `pinned` wanted more than all others together want to be: a planner takes them first."""
    lifted = demand.copy()
    for expert in pinned:
        lifted[expert.layer, expert.index] += 2 * demand.sum() + 1
    return lifted


DEFAULT_REFRESH_INTERVAL_PROMPTS = 40
"""eMoE's p, and where a p that is chosen by drift begins."""
MAX_SET_INTERVAL_PROMPTS = 100_000
MIN_INTERVAL_PROMPTS, MAX_INTERVAL_PROMPTS = 5, 160
CALM_RATIO, DRIFTED_RATIO = 0.995, 0.98
"""Of what a plan from the new demand covers: with as much left of it, the old plan did as well, or did no longer."""


def parse_interval(value: object) -> RefreshInterval:
    """`auto`, or a number of prompts; ValueError for all else."""
    if value == "auto":
        return "auto"
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_SET_INTERVAL_PROMPTS:
        return value
    raise ValueError(
        f"{value!r} is neither auto nor a number of prompts greater than or equal to 1 and at most "
        f"{MAX_SET_INTERVAL_PROMPTS}; write it like 40"
    )


def kept_ratio(before: FloatGrid, now: FloatGrid, plan: Callable[[FloatGrid], BoolGrid]) -> float:
    """How much of what a plan for `now` covers of it the plan for `before` would have: what asking anew was worth.

    1 when it was worth nothing, also when nothing is in demand."""
    best = float(now[plan(now)].sum())
    return float(now[plan(before)].sum()) / best if best > 0 else 1.0


def next_interval_prompts(interval_prompts: int, kept: float) -> int:
    """eMoE's p for the next time, after asking anew kept so much: doubled in calm, halved in drift, within bounds.

    A p that was set beyond a bound stays there until it moves the other way."""
    if kept >= CALM_RATIO:
        return max(interval_prompts, min(2 * interval_prompts, MAX_INTERVAL_PROMPTS))
    if kept < DRIFTED_RATIO:
        return min(interval_prompts, max(interval_prompts // 2, MIN_INTERVAL_PROMPTS))
    return interval_prompts
