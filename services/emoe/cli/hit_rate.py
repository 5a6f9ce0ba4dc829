"""The hit rate that a plan may expect, from a profile of routing counts that lies beside the model.

A profile is a predictor's state (`predictor.state`). The experts that the planner would keep are held against the
counts that they were chosen by: what share of the router's choices would have found its expert. A forecast for traffic
like the profile's, no measurement; without a profile there is none.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from emoe.cli.failures import CommandError
from emoe.core.experts import ExpertGrid, FloatGrid
from emoe.core.planning import PLANNERS
from emoe.predictor.learning import Learning
from emoe.predictor.state import load_prior
from emoe.store.shipped import PRIOR_FILE


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpectedHits:
    """Shares from 0 to 1: of all tasks alike, and of each task when it runs alone and the plan is made for it."""

    profile: str
    ratio: float
    by_task: dict[str, float]
    num_choices: int
    """Router's choices that the profile has counted."""


def expect_hits(folder: Path, *, digest: str, grid: ExpertGrid, num_slots: int) -> ExpectedHits | None:
    """`num_slots` without staging. None when no profile of this model lies in the folder."""
    path = folder / PRIOR_FILE
    try:
        memories = [memory for memory in load_prior(path) if memory.digest == digest and memory.grid == grid]
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CommandError(f"{path}: cannot be read ({error}); remove it, or put it back as it was") from error
    counted = sum(task.num_choices for memory in memories for task in memory.tasks)
    if not counted:
        return None
    learning = Learning(half_life_tokens=1.0)
    learning.remember(memories)

    def ratio(task_tokens: dict[str, float]) -> float:
        return _covered(learning.predict(digest, grid, task_tokens).demand, grid, num_slots)

    tasks = sorted({task.task for memory in memories for task in memory.tasks})
    return ExpectedHits(
        profile=str(path), ratio=ratio({}), by_task={task: ratio({task: 1.0}) for task in tasks}, num_choices=counted
    )


def _covered(demand: FloatGrid, grid: ExpertGrid, num_slots: int) -> float:
    """The share of demand [L, E] that falls on the experts which the loader's own planner would keep."""
    if num_slots >= grid.num_experts_total:
        return 1.0
    wanted = PLANNERS["global"].plan(demand, num_slots=num_slots, grid=grid)
    return float(np.sum(demand[wanted]) / np.sum(demand))
