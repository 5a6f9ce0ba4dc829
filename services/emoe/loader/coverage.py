"""How much of each task's demand each worker's residents meet: what the scheduler places requests by.

Fed with what the predictor foretold and with heartbeats; only the rows of workers whose residents changed are computed
anew. What is told stays as it is until it is off by more than a hundredth. Knows neither gRPC nor plans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from emoe.core.experts import BoolGrid, FloatGrid
from emoe.loader.workers import WorkerState

TOLD_STEP = 0.01

Shares = npt.NDArray[np.float32]


class Coverage:
    def __init__(self) -> None:
        self.told: Mapping[str, Mapping[str, float]] = {}
        """worker -> task -> share in [0, 1]. Empty before any demand is known."""
        self._tasks: tuple[str, ...] = ()
        self._demand_TN: Shares = np.zeros((0, 0), dtype=np.float32)
        self._resident: dict[str, BoolGrid] = {}

    def foretell(self, per_token: Mapping[str, FloatGrid]) -> None:
        """Task -> demand [L, E] of one of its tokens, of all tasks that are foretold."""
        self._tasks = tuple(sorted(task for task, demand in per_token.items() if demand.any()))
        rows = [(per_token[task] / per_token[task].sum()).ravel() for task in self._tasks]
        self._demand_TN = np.array(rows, dtype=np.float32)
        self._resident.clear()

    def refresh(self, states: Sequence[WorkerState]) -> bool:
        """Whether anything that is told changed."""
        if not self._tasks:
            return False
        changed = [state for state in states if self._has_moved(state)]
        gone = self._resident.keys() - {state.worker_id for state in states}
        told = {worker_id: shares for worker_id, shares in self.told.items() if worker_id not in gone}
        if changed:
            resident_WN = np.stack([state.resident.ravel() for state in changed]).astype(np.float32)
            for state, row in zip(changed, resident_WN @ self._demand_TN.T, strict=True):
                told[state.worker_id] = self._told_of(state.worker_id, row)
        self._resident = {state.worker_id: state.resident for state in states}
        is_news = bool(gone) or any(told[state.worker_id] is not self.told.get(state.worker_id) for state in changed)
        if is_news:
            self.told = told
        return is_news

    def _has_moved(self, state: WorkerState) -> bool:
        known = self._resident.get(state.worker_id)
        return known is None or (known is not state.resident and not np.array_equal(known, state.resident))

    def _told_of(self, worker_id: str, row: Shares) -> Mapping[str, float]:
        before = self.told.get(worker_id)
        now = dict(zip(self._tasks, np.clip(row, 0.0, 1.0).tolist(), strict=True))
        if before is None or before.keys() != now.keys():
            return now
        return before if all(abs(before[task] - now[task]) <= TOLD_STEP for task in now) else now


def overlap(per_token: Mapping[str, FloatGrid], tasks: Sequence[str], unknown: str) -> FloatGrid:
    """[T, T]: how alike the tasks' demands are, as cosines; a task that is not foretold is like the unknown one."""
    rows = [per_token.get(task, per_token[unknown]).ravel() for task in tasks]
    lengths = [max(float(np.linalg.norm(row)), 1e-12) for row in rows]
    unit_TN = np.array([row / length for row, length in zip(rows, lengths, strict=True)])
    alike: FloatGrid = unit_TN @ unit_TN.T
    return alike
