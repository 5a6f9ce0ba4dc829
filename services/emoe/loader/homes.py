"""Which workers each task is at home with, so that each keeps the experts of a few tasks and all together of most.

A home is a share of a task's load. Homes are spread so that every worker gets its fair part of the load and as few and
as similar tasks as can be. They stay: a new task or a worker that leaves moves no other task, and a better spread is
taken only when it is clearly better. Pure: knows neither plans nor time. W workers, T tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from emoe.core.experts import FloatGrid

BETTER_BY = 0.1
"""How much more (of 1) another spread must be worth than the one that stands."""
OVERFULL_RATIO = 0.25
"""Of a worker's fair part: so much more it takes rather than that a task is split."""
STAYING = 2.0
"""What it counts to be at home already, beside how alike the tasks are and what suits them."""
EMPTY_LIKENESS = 0.5
LEAST_LOAD = 1e-4
"""Of all: a task that has hardly any still has a home."""
_NOTHING = 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Situation:
    """`loads` [T] in any unit; `room` [W] is what share of the load each worker is for; `alike` [T, T] lies in [0, 1].
    `suits` [W, T] is higher the better a worker suits a task by its residents and by what is sent there, 2 at most."""

    workers: tuple[str, ...]
    tasks: tuple[str, ...]
    loads: FloatGrid
    room: FloatGrid
    alike: FloatGrid
    suits: FloatGrid


Homes = Mapping[str, Mapping[str, float]]
"""Worker -> task -> share of the task's load, shares that are not nothing alone; those of a task sum to one."""


def settle(before: Homes, now: Situation) -> Homes:
    """The homes that stand, with what is new or left behind put somewhere; or clearly better ones."""
    loads = np.maximum(now.loads / (now.loads.sum() or 1.0), LEAST_LOAD)
    loads /= loads.sum()
    stood = np.array([[before.get(one, {}).get(task, 0.0) for task in now.tasks] for one in now.workers])
    standing = _place(stood * loads, stood, loads, now)
    fresh = _place(np.zeros_like(standing), stood, loads, now)
    best = fresh if _worth(fresh, now) > _worth(standing, now) + BETTER_BY else standing
    return {
        worker_id: {task: float(share) for task, share in zip(now.tasks, row, strict=True) if share > 0}
        for worker_id, row in zip(now.workers, best / best.sum(axis=0), strict=True)
    }


def _place(taken: FloatGrid, stood: FloatGrid, loads: FloatGrid, now: Situation) -> FloatGrid:
    """`taken` [W, T] with all that is not placed yet, the largest first."""
    amounts = taken.copy()
    left = loads - amounts.sum(axis=0)
    for task in np.argsort(-left, kind="stable"):
        while left[task] > _NOTHING:
            free = now.room - amounts.sum(axis=1)
            worker = _pick(task, left[task], free, amounts, stood, now)
            fits = left[task] <= free[worker] + OVERFULL_RATIO * now.room[worker]
            part = left[task] if fits or free[worker] <= _NOTHING else min(left[task], free[worker])
            amounts[worker, task] += part
            left[task] -= part
    return amounts


def _pick(task: int, left: float, free: FloatGrid, amounts: FloatGrid, stood: FloatGrid, now: Situation) -> int:
    """With room for all of it rather than for a part, for a part rather than for nothing; then where it suits best."""
    held = amounts.sum(axis=1)
    alike = np.where(held > _NOTHING, amounts @ now.alike[task] / np.maximum(held, _NOTHING), EMPTY_LIKENESS)
    suits = STAYING * (stood[:, task] > 0) + alike + now.suits[:, task]
    has_room = free > _NOTHING
    fits = has_room & (free + OVERFULL_RATIO * now.room >= left)
    eligible = fits if fits.any() else has_room
    if not eligible.any():
        return int(np.argmax(free))
    return int(np.argmax(np.where(eligible, suits + 1e-6 * free, -np.inf)))


def _worth(amounts: FloatGrid, now: Situation) -> float:
    """How alike what runs together is, less what is beyond the workers' fair parts; 1 at most."""
    held = amounts.sum(axis=1)
    together = np.einsum("wt,tu,wu->w", amounts, now.alike, amounts) / np.maximum(held, _NOTHING)
    return float(together.sum() - np.maximum(held - now.room, 0.0).sum())
