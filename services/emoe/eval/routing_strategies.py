"""Ways to choose residents for the coming tokens of a running request, from best guess to baseline to hindsight.

Each learns from decisions of other prompts and scores the experts at decisions of prompts that it never saw.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np

from emoe.core.demand import FrequencyPredictor
from emoe.core.own_routing import Array, OwnRoutingRegression
from emoe.core.retrieval import NearestRouting, cosine_signs
from emoe.eval.decisions import Decisions

OWN_SHARE = 0.3
PRIOR_TOKENS = 256.0
COUNTS_A_TOKEN = 1_000
"""Frequencies of a window become whole counts at this resolution."""


class RoutingStrategy(Protocol):
    def fit(self, known: Decisions) -> None: ...

    def score(self, asked: Decisions) -> Array:
        """[N, L, E]: the higher, the rather resident."""
        ...


class Random:
    """Any experts."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def fit(self, known: Decisions) -> None:
        pass

    def score(self, asked: Decisions) -> Array:
        return self._random.random(asked.futures.shape, dtype=np.float32)


class GlobalFrequency:
    """What all other prompts routed, alike for everybody."""

    def fit(self, known: Decisions) -> None:
        self._frequency_LE = np.average(known.futures, axis=0, weights=known.num_tokens).astype(np.float32)

    def score(self, asked: Decisions) -> Array:
        return np.broadcast_to(self._frequency_LE, asked.futures.shape)


class TaskFrequency:
    """What other prompts of the category routed; the served predictor's own counting."""

    def fit(self, known: Decisions) -> None:
        shape = known.futures.shape[1:]
        self._predictor = FrequencyPredictor(
            (shape[0], shape[1]), half_life_tokens=math.inf, prior_tokens=PRIOR_TOKENS * COUNTS_A_TOKEN
        )
        for category, tokens, future_LE in zip(known.categories, known.num_tokens, known.futures, strict=True):
            counts = np.rint(future_LE.astype(np.float64) * int(tokens) * COUNTS_A_TOKEN).astype(np.int64)
            self._predictor.observe(str(category), counts)

    def score(self, asked: Decisions) -> Array:
        scores = {category: self._predictor.predict({category: 1.0}) for category in map(str, set(asked.categories))}
        return np.stack([scores[str(category)] for category in asked.categories]).astype(np.float32)


class ShuffledTaskFrequency(TaskFrequency):
    """The same with labels dealt out at random: were it as good, knowing the task would be worth nothing."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def fit(self, known: Decisions) -> None:
        super().fit(known.with_categories(self._shuffled(known)))

    def score(self, asked: Decisions) -> Array:
        return super().score(asked.with_categories(self._shuffled(asked)))

    def _shuffled(self, decisions: Decisions) -> np.ndarray:
        """A prompt keeps one label for all of its decisions."""
        prompts, first, inverse = np.unique(decisions.prompts, return_index=True, return_inverse=True)
        return decisions.categories[first][self._random.permutation(len(prompts))][inverse]


class Own:
    """What the request itself routed so far."""

    def fit(self, known: Decisions) -> None:
        pass

    def score(self, asked: Decisions) -> Array:
        return asked.spans[:, 0]


class ByTrajectory:
    """Its own routing blended with how the prompts went on that began most alike (`core.retrieval`, after FineMoE)."""

    def fit(self, known: Decisions) -> None:
        self._nearest = NearestRouting()
        self._nearest.fit(cosine_signs(known.spans[:, 0]), known.futures)

    def score(self, asked: Decisions) -> Array:
        own = asked.spans[:, 0]
        return np.asarray(OWN_SHARE * own + (1 - OWN_SHARE) * self._nearest.predict(cosine_signs(own)))


class OwnRegression:
    """emoe's: kernel ridge regression on the request's own routing (`core.own_routing`)."""

    def fit(self, known: Decisions) -> None:
        self._regression = OwnRoutingRegression()
        self._regression.fit(known.spans, known.futures, known.num_tokens)

    def score(self, asked: Decisions) -> Array:
        return self._regression.predict(asked.spans)


class Oracle:
    """Hindsight: what the coming tokens did route."""

    def fit(self, known: Decisions) -> None:
        pass

    def score(self, asked: Decisions) -> Array:
        return asked.futures


STRATEGIES: dict[str, Callable[[int], RoutingStrategy]] = {
    "random": Random,
    "global-frequency": lambda _seed: GlobalFrequency(),
    "task-frequency": lambda _seed: TaskFrequency(),
    "task-frequency-shuffled": ShuffledTaskFrequency,
    "own": lambda _seed: Own(),
    "retrieval-trajectory": lambda _seed: ByTrajectory(),
    "emoe": lambda _seed: OwnRegression(),
    "oracle": lambda _seed: Oracle(),
}
"""Made from a seed, which counts for those that draw."""
