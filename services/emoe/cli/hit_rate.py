"""The hit rate that a plan may expect, from the task profile that lies beside the model (`emoe profile`).

The experts that the planner would keep are held against the frequencies that they were chosen by: what share of the
router's choices would have found its expert. A forecast for traffic like the profile's, no measurement; without a
profile there is none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from emoe.core.experts import ExpertGrid, FloatGrid
from emoe.core.planning import PLANNERS, ResidencyPlanner
from emoe.predictor.profile import sensitivity_of
from emoe.store.profile import PROFILE_FILE, Profile, read_profile
from emoe.store.store import ExpertStore


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpectedHits:
    """Shares from 0 to 1: of all tasks alike, and of each task when it runs alone and the plan is made for it."""

    profile: str
    ratio: float
    by_task: dict[str, float]
    num_tokens: int
    """That the profile was made from."""


def expect_hits(store: ExpertStore, *, num_slots: int, planner: str) -> ExpectedHits | None:
    """`num_slots` without staging. None when no profile lies beside the model; CheckpointError for one of others."""
    profile = read_profile(store.folder, digest=store.digest, fingerprint=store.fingerprint())
    if profile is None or not profile.tasks:
        return None
    tasks = sorted(profile.tasks)
    return ExpectedHits(
        profile=str(store.folder / PROFILE_FILE),
        ratio=_covered(profile, tasks, store.grid, num_slots, PLANNERS[planner]),
        by_task={task: _covered(profile, [task], store.grid, num_slots, PLANNERS[planner]) for task in tasks},
        num_tokens=sum(measured.num_tokens for measured in profile.tasks.values()),
    )


def _covered(
    profile: Profile, tasks: Iterable[str], grid: ExpertGrid, num_slots: int, planner: ResidencyPlanner
) -> float:
    """The share of the tasks' choices that fall on the experts which the loader's own planner would keep for them."""
    if num_slots >= grid.num_experts_total:
        return 1.0
    sensitivity = sensitivity_of(profile, None)
    routed, demand = np.zeros(grid.shape), np.zeros(grid.shape)
    for task in tasks:
        frequencies: FloatGrid = profile.tasks[task].routed_frequencies
        routed += frequencies
        demand += frequencies * sensitivity.get(task, np.ones(grid.shape[0]))[:, None]
    wanted = planner.plan(demand, num_slots=num_slots, grid=grid)
    return float(np.sum(routed[wanted]) / np.sum(routed))
