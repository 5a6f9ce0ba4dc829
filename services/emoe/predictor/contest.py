"""One model's predictors, in order of preference, and who of them is gone by: the best that holds up.

Stands between what is learnt (`learning`) and the predictors of `core`. First the one that the settings ask for, then
counting from the model's profile, last counting alone. Each task steps back by itself, since a profile may fit one and
not another; a task without reports goes by what most others do. Says in the log when somebody steps back or forward.
"""

from __future__ import annotations

import dataclasses
import logging
import statistics
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from emoe.core.demand import DemandPredictor, FrequencyPredictor
from emoe.core.experts import CountGrid, ExpertGrid, FloatGrid
from emoe.core.step_back import StepBack
from emoe.core.tasks import UNKNOWN

COUNTS, FREQUENCY, SEQUENCE = "counts", "frequency", "sequence"
PRIOR_TOKENS = 256.0
UNKNOWN_HALF_LIFE_TOKENS = 4_000.0
"""Of requests that nobody could name: some twenty of them."""
WINDOW_TOKENS = 4096.0
"""Of a task: how far back it is looked who foretold better."""
MIN_TOKENS = 512.0
"""Of a task, before anybody steps back: fewer are mostly noise."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """How much what was counted weighs; in tokens of a task."""

    half_life_tokens: float
    profile_tokens: float
    max_tasks: int = 64


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Beforehand:
    """What is known of a model before anything was counted. `sequence` is None where none was trained or wanted."""

    priors: Mapping[str, FloatGrid]
    """Routing frequencies [L, E] of each profiled task."""
    sensitivity: Mapping[str, npt.NDArray[np.float64]]
    """[L]: s of eMoE's equation 1; a task that is not named is sensitive in every layer."""
    sequence: DemandPredictor | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Foretold:
    """`predictor`: who answered for the task with the most tokens. `stepped_back`: for any task asked for."""

    demand: FloatGrid
    predictor: str
    stepped_back: bool


class Contest:
    """`name` is the model's, for the log. `weights` are counts to go on from."""

    def __init__(
        self, name: str, grid: ExpertGrid, evidence: Evidence, *, weights: Mapping[str, FloatGrid] | None = None
    ) -> None:
        self._name = name
        self._grid = grid
        self._evidence = evidence
        self._counts = self._frequency(weights or {}, priors={})
        self._sensitivity: Mapping[str, npt.NDArray[np.float64]] = {}
        self._contenders: dict[str, DemandPredictor] = {}
        self._enter({COUNTS: self._counts})

    @property
    def weights(self) -> Mapping[str, FloatGrid]:
        """Decayed counts [L, E] of each task, from the least recently observed to the most."""
        return self._counts.weights

    def begin_from(self, beforehand: Beforehand) -> None:
        """Everybody starts anew in the contest; what was counted stays."""
        contenders: dict[str, DemandPredictor] = {}
        if beforehand.sequence is not None:
            contenders[SEQUENCE] = beforehand.sequence
        contenders[FREQUENCY] = self._frequency(self.weights, priors=beforehand.priors)
        self._sensitivity = beforehand.sensitivity
        self._enter({**contenders, COUNTS: self._counts})

    def observe(self, task: str, counts: CountGrid) -> None:
        if len(self._contenders) > 1:
            self._judge(task, counts)
        for contender in self._contenders.values():
            contender.observe(task, counts)

    def predict(self, task_tokens: Mapping[str, float]) -> Foretold:
        """Demand is eMoE's equation 1: the sum over tasks of tokens * s * f; zero in layers without experts."""
        asked = task_tokens or {UNKNOWN: 1.0}
        demand = np.zeros(self._grid.shape)
        for task, tokens in asked.items():
            frequency = self._contenders[self._answering(task)].predict({task: 1.0})
            sensitivity = self._sensitivity.get(task)
            demand += tokens * (frequency if sensitivity is None else sensitivity[:, None] * frequency)
        return Foretold(
            demand=np.where(self._grid.all_experts(), demand, 0.0),
            predictor=self._answering(max(asked, key=lambda task: asked[task])),
            stepped_back=any(self._standing(task) > 0 for task in asked),
        )

    def _answering(self, task: str) -> str:
        return list(self._contenders)[self._standing(task)]

    def _standing(self, task: str) -> int:
        board = self._boards.get(task)
        if board is not None:
            return board.standing
        return statistics.median_low(other.standing for other in self._boards.values()) if self._boards else 0

    def _judge(self, task: str, counts: CountGrid) -> None:
        predictions = [contender.predict({task: 1.0}) for contender in self._contenders.values()]
        if task not in self._boards and len(self._boards) >= self._evidence.max_tasks:
            del self._boards[next(iter(self._boards))]
        board = self._boards.pop(task, None) or self._new_board()
        self._boards[task] = board
        before = board.standing
        board.observe(predictions, counts)
        if board.standing != before:
            self._tell(board, task, before)

    def _tell(self, board: StepBack, task: str, before: int) -> None:
        names = list(self._contenders)
        after = board.standing
        _log.log(
            logging.WARNING if after > before else logging.INFO,
            "model %s, task %s: %s from predictor %r to %r, which covered %.1f %% of the latest choices, not %.1f %%",
            self._name[:12],
            task,
            "stepping back" if after > before else "going forward",
            names[before],
            names[after],
            100 * board.covered_ratio(after),
            100 * board.covered_ratio(before),
        )

    def _enter(self, contenders: dict[str, DemandPredictor]) -> None:
        self._contenders = contenders
        self._boards: dict[str, StepBack] = {}

    def _new_board(self) -> StepBack:
        choices_per_token = self._grid.rule.top_k
        return StepBack(
            len(self._contenders),
            window_tokens=WINDOW_TOKENS * choices_per_token,
            min_tokens=MIN_TOKENS * choices_per_token,
        )

    def _frequency(self, weights: Mapping[str, FloatGrid], *, priors: Mapping[str, FloatGrid]) -> FrequencyPredictor:
        # The predictor weighs token-expert choices: each token makes top_k of them in a layer.
        choices_per_token = self._grid.rule.top_k
        return FrequencyPredictor(
            self._grid.shape,
            half_life_tokens=self._evidence.half_life_tokens * choices_per_token,
            unknown_half_life_tokens=UNKNOWN_HALF_LIFE_TOKENS * choices_per_token,
            prior_tokens=PRIOR_TOKENS * choices_per_token,
            priors=priors,
            profile_tokens=self._evidence.profile_tokens * choices_per_token,
            weights=weights,
            max_tasks=self._evidence.max_tasks,
        )
