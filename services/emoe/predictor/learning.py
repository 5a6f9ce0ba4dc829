"""What the predictor has learnt: a frequency predictor for each model, each with a bounded number of tasks.

Stands behind the service: routing counts come in from the workers, demand goes out to the loader. The least recently
observed model or task is forgotten when a bound is reached. Knows neither gRPC nor files nor time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TypeVar

import numpy as np

from emoe.core.demand import FrequencyPredictor
from emoe.core.errors import InvalidRequestError
from emoe.core.experts import CountGrid, ExpertGrid, FloatGrid
from emoe.core.tasks import UNKNOWN

PRIOR_TOKENS = 256.0

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskMemory:
    """Decayed routing counts [L, E] of one task, and how many choices were ever counted."""

    task: str
    weights: FloatGrid
    num_choices: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelMemory:
    """All that is kept of one model; tasks from the least recently observed to the most."""

    digest: str
    grid: ExpertGrid
    tasks: tuple[TaskMemory, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    demand: FloatGrid
    num_choices_learnt: int


@dataclasses.dataclass
class _Model:
    grid: ExpertGrid
    predictor: FrequencyPredictor
    num_choices: dict[str, int] = dataclasses.field(default_factory=dict)


class Learning:
    """Not thread-safe: the event loop alone calls it."""

    def __init__(self, *, half_life_tokens: float, max_models: int = 4, max_tasks: int = 64) -> None:
        self._half_life_tokens = half_life_tokens
        self._max_models = max_models
        self._max_tasks = max_tasks
        self._models: dict[str, _Model] = {}
        self.num_observed = 0
        """Reports taken since the start: tells whether there is anything new to save."""

    def observe(self, digest: str, grid: ExpertGrid, task: str, counts: CountGrid) -> None:
        """Learn from counts [L, E] of one task. InvalidRequestError when they cannot be of this model."""
        if counts.shape != grid.shape:
            raise InvalidRequestError(f"counts have shape {counts.shape}, model {digest} has {grid.shape}")
        if counts[~grid.all_experts()].any():
            raise InvalidRequestError(f"counts of model {digest} name experts in layers that have none")
        model = self._model_with(digest, grid) or self._new_model(grid)
        _make_most_recent(self._models, digest, model, self._max_models)
        model.predictor.observe(task, counts)
        weights = model.predictor.weights
        _make_most_recent(weights, task, weights[task], self._max_tasks)
        total = model.num_choices.get(task, 0) + int(counts.sum())
        _make_most_recent(model.num_choices, task, total, self._max_tasks)
        self.num_observed += 1

    def predict(self, digest: str, grid: ExpertGrid, task_tokens: Mapping[str, float]) -> Prediction:
        """A model never seen has uniform demand. The unknown task is learnt from all tasks alike."""
        model = self._model_with(digest, grid) or self._new_model(grid)
        demand = np.where(grid.all_experts(), model.predictor.predict(task_tokens), 0.0)
        asked = model.num_choices if not task_tokens or UNKNOWN in task_tokens else task_tokens
        learnt = sum(model.num_choices.get(task, 0) for task in asked)
        return Prediction(demand=demand, num_choices_learnt=learnt)

    def remember(self, memories: Iterable[ModelMemory]) -> None:
        """Take up what an earlier process had learnt."""
        for memory in memories:
            model = self._new_model(memory.grid)
            for kept in memory.tasks[-self._max_tasks :]:
                model.predictor.weights[kept.task] = kept.weights.copy()
                model.num_choices[kept.task] = kept.num_choices
            _make_most_recent(self._models, memory.digest, model, self._max_models)

    def memories(self) -> tuple[ModelMemory, ...]:
        """Copies, from the least recently observed model to the most."""
        return tuple(
            ModelMemory(
                digest=digest,
                grid=model.grid,
                tasks=tuple(
                    TaskMemory(task=task, weights=model.predictor.weights[task].copy(), num_choices=num_choices)
                    for task, num_choices in model.num_choices.items()
                ),
            )
            for digest, model in self._models.items()
        )

    def _model_with(self, digest: str, grid: ExpertGrid) -> _Model | None:
        model = self._models.get(digest)
        if model is not None and model.grid != grid:
            raise InvalidRequestError(f"model {digest} is known with {model.grid}, not {grid}; one of the two is wrong")
        return model

    def _new_model(self, grid: ExpertGrid) -> _Model:
        # The predictor weighs token-expert choices: each token makes top_k of them in a layer.
        choices_per_token = grid.rule.top_k
        predictor = FrequencyPredictor(
            grid.shape,
            half_life_tokens=self._half_life_tokens * choices_per_token,
            prior_tokens=PRIOR_TOKENS * choices_per_token,
        )
        return _Model(grid=grid, predictor=predictor)


def _make_most_recent(entries: dict[str, _T], key: str, value: _T, limit: int) -> None:
    entries.pop(key, None)
    entries[key] = value
    while len(entries) > limit:
        del entries[next(iter(entries))]
