"""Strategies that only ablations need: residents kept for a while, and a frequency that forgets and knows no task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from emoe.core.demand import FrequencyPredictor
from emoe.core.experts import BoolGrid, FloatGrid
from emoe.eval.strategies import Known
from emoe.eval.streams import ResidencyStrategy, Running

ANYBODY = "anybody"
"""The one task of a predictor that is told none."""


class Kept:
    """Another strategy, asked at every `every_prompts`-th prompt; its residents stay until then (eMoE's p).

    At that moment it sees the requests that run and the newcomers; whoever comes later lives with its choice.
    """

    def __init__(self, strategy: ResidencyStrategy, *, every_prompts: int) -> None:
        self._strategy = strategy
        self._every_prompts = every_prompts
        self._seen: set[Running] = set()
        self._next_at = 0
        self._plan: BoolGrid | None = None

    def plan(self, running: Sequence[Running]) -> BoolGrid | None:
        num_before = len(self._seen)
        self._seen.update(running)
        if num_before == 0 or len(self._seen) > self._next_at:
            self._plan = self._strategy.plan(running)
            self._next_at = (len(self._seen) - 1) // self._every_prompts * self._every_prompts + self._every_prompts
        return self._plan


class Decayed:
    """What all requests routed lately, whatever their task (`core.demand`), from a prior on; learns at every plan."""

    def __init__(self, known: Known, prior: FloatGrid, *, half_life_tokens: float) -> None:
        self._known = known
        # As heavy as all that it remembers in the long run.
        weight = half_life_tokens / np.log(2)
        self._predictor = FrequencyPredictor(
            known.grid.shape, half_life_tokens=half_life_tokens, weights={ANYBODY: prior * weight}
        )
        self._num_seen: dict[Running, int] = {}

    def plan(self, running: Sequence[Running]) -> BoolGrid:
        for request in {**self._num_seen, **dict.fromkeys(running)}:
            self._learn(request)
        return self._known.plan(self._predictor.predict({ANYBODY: 1.0}))

    def _learn(self, request: Running) -> None:
        for counts in request.phases[self._num_seen.get(request, 0) :]:
            self._predictor.observe(ANYBODY, counts)
        if request.is_finished:
            self._num_seen.pop(request, None)
        else:
            self._num_seen[request] = len(request.phases)


class Static:
    """One plan for ever, from frequencies that were known at the beginning."""

    def __init__(self, known: Known, frequency: FloatGrid) -> None:
        self._plan = known.plan(frequency)

    def plan(self, running: Sequence[Running]) -> BoolGrid:  # noqa: ARG002 - they need not be known
        return self._plan
