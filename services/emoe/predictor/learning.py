"""What the predictor has learnt: a contest of predictors for each model, each with a bounded number of tasks.

Stands behind the service: routing counts come in from the workers, profiles from the loader, demand goes out to it. The
least recently observed model or task is forgotten when a bound is reached. Knows neither gRPC nor files nor time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TypeVar

from emoe.core.errors import InvalidRequestError
from emoe.core.experts import CountGrid, ExpertGrid, FloatGrid
from emoe.core.tasks import UNKNOWN
from emoe.predictor.contest import Beforehand, Contest, Evidence

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
    """`predictor` is the one that answered, for the task with the most tokens; `stepped_back` tells of any task."""

    demand: FloatGrid
    num_choices_learnt: int
    has_profile: bool
    predictor: str
    stepped_back: bool


@dataclasses.dataclass
class _Model:
    grid: ExpertGrid
    contest: Contest
    num_choices: dict[str, int] = dataclasses.field(default_factory=dict)
    profile_sha256: str | None = None


class Learning:
    """Not thread-safe: the event loop alone calls it."""

    def __init__(
        self,
        *,
        half_life_tokens: float,
        profile_tokens: float = 2000.0,
        max_models: int = 4,
        max_tasks: int = 64,
    ) -> None:
        self._evidence = Evidence(half_life_tokens=half_life_tokens, profile_tokens=profile_tokens, max_tasks=max_tasks)
        self._max_models = max_models
        self._models: dict[str, _Model] = {}
        self.num_observed = 0
        """Reports taken since the start: tells whether there is anything new to save."""

    def observe(self, digest: str, grid: ExpertGrid, task: str, counts: CountGrid) -> None:
        """Learn from counts [L, E] of one task. InvalidRequestError when they cannot be of this model."""
        if counts.shape != grid.shape:
            raise InvalidRequestError(f"counts have shape {counts.shape}, model {digest} has {grid.shape}")
        if counts[~grid.all_experts()].any():
            raise InvalidRequestError(f"counts of model {digest} name experts in layers that have none")
        model = self._most_recent(digest, grid)
        model.contest.observe(task, counts)
        total = model.num_choices.get(task, 0) + int(counts.sum())
        _make_most_recent(model.num_choices, task, total, self._evidence.max_tasks)
        self.num_observed += 1

    def begin_from(self, digest: str, grid: ExpertGrid, beforehand: Beforehand, *, sha256: str) -> None:
        """In place of the profile known before; one of the same `sha256` leaves all as it is."""
        model = self._most_recent(digest, grid)
        if model.profile_sha256 != sha256:
            model.contest.begin_from(beforehand)
            model.profile_sha256 = sha256

    def predict(self, digest: str, grid: ExpertGrid, task_tokens: Mapping[str, float]) -> Prediction:
        """A model never seen has uniform demand. The unknown task is learnt from all tasks alike."""
        model = self._model_with(digest, grid) or self._new_model(digest, grid)
        foretold = model.contest.predict(task_tokens)
        asked = model.num_choices if not task_tokens or UNKNOWN in task_tokens else task_tokens
        return Prediction(
            demand=foretold.demand,
            num_choices_learnt=sum(model.num_choices.get(task, 0) for task in asked),
            has_profile=model.profile_sha256 is not None,
            predictor=foretold.predictor,
            stepped_back=foretold.stepped_back,
        )

    def remember(self, memories: Iterable[ModelMemory]) -> None:
        """Take up what an earlier process had learnt; profiles are no part of it."""
        for memory in memories:
            kept = memory.tasks[-self._evidence.max_tasks :]
            model = self._new_model(memory.digest, memory.grid, weights={task.task: task.weights for task in kept})
            model.num_choices = {task.task: task.num_choices for task in kept}
            _make_most_recent(self._models, memory.digest, model, self._max_models)

    def memories(self) -> tuple[ModelMemory, ...]:
        """Copies, from the least recently observed model to the most."""
        return tuple(
            ModelMemory(
                digest=digest,
                grid=model.grid,
                tasks=tuple(
                    TaskMemory(task=task, weights=model.contest.weights[task].copy(), num_choices=num_choices)
                    for task, num_choices in model.num_choices.items()
                ),
            )
            for digest, model in self._models.items()
        )

    def _most_recent(self, digest: str, grid: ExpertGrid) -> _Model:
        model = self._model_with(digest, grid) or self._new_model(digest, grid)
        _make_most_recent(self._models, digest, model, self._max_models)
        return model

    def _model_with(self, digest: str, grid: ExpertGrid) -> _Model | None:
        model = self._models.get(digest)
        if model is not None and model.grid != grid:
            raise InvalidRequestError(f"model {digest} is known with {model.grid}, not {grid}; one of the two is wrong")
        return model

    def _new_model(self, digest: str, grid: ExpertGrid, *, weights: Mapping[str, FloatGrid] | None = None) -> _Model:
        return _Model(grid=grid, contest=Contest(digest, grid, self._evidence, weights=weights))


def _make_most_recent(entries: dict[str, _T], key: str, value: _T, limit: int) -> None:
    entries.pop(key, None)
    entries[key] = value
    while len(entries) > limit:
        del entries[next(iter(entries))]
