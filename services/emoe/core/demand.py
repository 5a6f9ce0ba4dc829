"""Which experts the coming prompts need (the `DemandPredictor` seam), and the predictor that counts.

Demand is a grid [L, E] of expected tokens. A predictor learns from routing counts: the experts the router wanted,
resident or not, for a number of tokens of one task. What a task's profile says beforehand is a prior here; how much a
layer's routing matters to a task (s of eMoE's equation 1) is weighed in by whoever asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from emoe.core.experts import CountGrid, FloatGrid
from emoe.core.frequencies import normalise
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
    `half_life_tokens` more tokens of its task. `priors` are frequencies known beforehand, task -> [L, E]: such a task
    begins as if `profile_tokens` of it had been counted so, and they do not decay. A task never seen, and one seen
    little, leans on the mean of all instead: `prior_tokens` of it are mixed into every task without a prior of its own.
    Requests without a task differ from hour to hour: their counts halve after `unknown_half_life_tokens`, so that they
    are foretold by the latest of their kind.
    `weights` are counts to go on from. The least recently observed of more than `max_tasks` tasks is forgotten.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        half_life_tokens: float = 200_000.0,
        unknown_half_life_tokens: float = 4_000.0,
        prior_tokens: float = 256.0,
        priors: Mapping[str, FloatGrid] | None = None,
        profile_tokens: float = 2000.0,
        weights: Mapping[str, FloatGrid] | None = None,
        max_tasks: int | None = None,
    ) -> None:
        self._shape = shape
        self._half_life_tokens = half_life_tokens
        self._unknown_half_life_tokens = min(unknown_half_life_tokens, half_life_tokens)
        self._prior_tokens = prior_tokens
        self._priors = {task: profile_tokens * prior for task, prior in (priors or {}).items()}
        self._max_tasks = max_tasks
        self._mean: FloatGrid | None = None
        self.weights: dict[str, FloatGrid] = {task: seen.copy() for task, seen in (weights or {}).items()}

    def observe(self, task: str, counts: CountGrid) -> None:
        if counts.shape != self._shape:
            raise ValueError(f"counts have shape {counts.shape}, this model has {self._shape}")
        total = self.weights.pop(task, np.zeros(self._shape))
        half_life = self._unknown_half_life_tokens if task == UNKNOWN else self._half_life_tokens
        total *= 0.5 ** (tokens_in(counts) / half_life)
        total += counts
        self.weights[task] = total
        while self._max_tasks is not None and len(self.weights) > self._max_tasks:
            del self.weights[next(iter(self.weights))]
        self._mean = None

    def predict(self, task_tokens: Mapping[str, float]) -> FloatGrid:
        """With no task given, and neither a prior nor a count, every expert is in equal demand."""
        demand = np.zeros(self._shape)
        for task, tokens in (task_tokens or {UNKNOWN: 1.0}).items():
            demand += tokens * self._frequency(task)
        return demand

    def _frequency(self, task: str) -> FloatGrid:
        if task in self._priors:
            return normalise(self._evidence(task))
        return normalise(self._frequency_of_all() * self._prior_tokens + self.weights.get(task, 0.0))

    def _frequency_of_all(self) -> FloatGrid:
        """The mean of the tasks' frequencies, each task alike; uniform before anything was seen."""
        if self._mean is None:
            evidence = [self._evidence(task) for task in {**self._priors, **self.weights}]
            known = [normalise(grid) for grid in evidence if grid.any()]
            uniform = np.full(self._shape, 1.0 / self._shape[1])
            self._mean = np.asarray(np.mean(known, axis=0)) if known else uniform
        return self._mean

    def _evidence(self, task: str) -> FloatGrid:
        """[L, E] in choices: the prior's, and those counted."""
        return np.asarray(self._priors.get(task, 0.0) + self.weights.get(task, np.zeros(self._shape)))


def tokens_in(counts: CountGrid) -> float:
    """How many token-expert choices the busiest layer saw: every token passes every layer."""
    return float(counts.sum(axis=1).max(initial=0))
