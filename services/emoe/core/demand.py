"""Which experts the coming prompts need (the `DemandPredictor` seam), and the predictor that counts.

Demand is a grid [L, E] of expected tokens. A predictor learns from routing counts: the experts the router wanted,
resident or not, for a number of tokens of one task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from emoe.core.experts import CountGrid, FloatGrid
from emoe.core.tasks import UNKNOWN


class DemandPredictor(Protocol):
    def observe(self, task: str, counts: CountGrid) -> None:
        """Learn from counts [L, E] of one task's tokens."""
        ...

    def predict(self, task_tokens: Mapping[str, float]) -> FloatGrid:
        """Expected tokens of each task that run or wait -> demand [L, E]."""
        ...


class FrequencyPredictor:
    """Relative routing frequency per task with exponential decay: eMoE equation 1 with s = 1.

    N(layer, expert) = sum over tasks of tokens(task) * f(task, layer, expert). A count halves in weight after
    `half_life_tokens` more tokens of its task. A task never seen, and one seen little, leans on the mean of all:
    `prior_tokens` of it are mixed into every task.
    """

    def __init__(
        self, shape: tuple[int, int], *, half_life_tokens: float = 200_000.0, prior_tokens: float = 256.0
    ) -> None:
        self._shape = shape
        self._half_life_tokens = half_life_tokens
        self._prior_tokens = prior_tokens
        self.weights: dict[str, FloatGrid] = {}

    def observe(self, task: str, counts: CountGrid) -> None:
        if counts.shape != self._shape:
            raise ValueError(f"counts have shape {counts.shape}, this model has {self._shape}")
        total = self.weights.setdefault(task, np.zeros(self._shape))
        total *= 0.5 ** (tokens_in(counts) / self._half_life_tokens)
        total += counts

    def predict(self, task_tokens: Mapping[str, float]) -> FloatGrid:
        """With no task given or no count seen, every expert is in equal demand."""
        prior = self._frequency_of_all()
        demand = np.zeros(self._shape)
        for task, tokens in (task_tokens or {UNKNOWN: 1.0}).items():
            seen = self.weights.get(task)
            mixed = prior * self._prior_tokens + (0.0 if seen is None or task == UNKNOWN else seen)
            demand += tokens * _normalise(mixed)
        return demand

    def _frequency_of_all(self) -> FloatGrid:
        """The mean of the tasks' frequencies, each task alike; uniform before anything was seen."""
        known = [_normalise(weight) for weight in self.weights.values() if weight.any()]
        if not known:
            return np.full(self._shape, 1.0 / self._shape[1])
        return np.asarray(np.mean(known, axis=0))


def tokens_in(counts: CountGrid) -> float:
    """How many token-expert choices the busiest layer saw: every token passes every layer."""
    return float(counts.sum(axis=1).max(initial=0))


def _normalise(grid: FloatGrid) -> FloatGrid:
    """Each row sums to one; a row of zeros (a dense layer) stays."""
    sums = grid.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(grid, sums, out=np.zeros_like(grid, dtype=np.float64), where=sums > 0))
