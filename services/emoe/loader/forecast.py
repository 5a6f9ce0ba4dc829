"""The demand that the predictor foretold last, task by task: what stands between two predictions.

Kept per task, so that a new mix of tasks is weighed anew without asking again. Knows neither gRPC nor time.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from emoe.core.experts import ExpertGrid, FloatGrid
from emoe.core.tasks import UNKNOWN


class Forecast:
    def __init__(self, grid: ExpertGrid) -> None:
        self.version = 0
        """0 until the first prediction."""
        self._uniform = grid.all_experts() / grid.rule.num_experts
        self._per_token: dict[str, FloatGrid] = {}

    @property
    def tasks(self) -> frozenset[str]:
        return frozenset(self._per_token)

    @property
    def per_token(self) -> Mapping[str, FloatGrid]:
        """Of all tasks that are foretold, and of the unknown one."""
        return {UNKNOWN: self._unknown, **self._per_token}

    @property
    def _unknown(self) -> FloatGrid:
        return self._per_token.get(UNKNOWN, self._uniform)

    def update(self, per_token: Mapping[str, FloatGrid]) -> None:
        """task -> demand [L, E] of one of its tokens. Tasks not named are forgotten."""
        self._per_token = dict(per_token)
        self.version += 1

    def demand(self, task_tokens: Mapping[str, float]) -> FloatGrid:
        """[L, E]. A task not foretold counts as the unknown one, and that as uniform; no task, as one unknown token."""
        demand = np.zeros_like(self._uniform)
        for task, tokens in (task_tokens or {UNKNOWN: 1.0}).items():
            demand += tokens * self._per_token.get(task, self._unknown)
        return demand
