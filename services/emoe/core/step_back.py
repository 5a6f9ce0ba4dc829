"""Which of several predictions to go by: each is held against what the routers then wanted.

Contenders stand in order of preference, the last being plain counting. Before anybody learns from a report, the share
of its choices is taken that a plan of each contender's foremost experts would have covered. That is what residency
lives on: a likelihood would hang on rare experts that no plan holds, and one of them never foretold would end all.
L layers, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from emoe.core.demand import tokens_in
from emoe.core.experts import CountGrid, FloatGrid

KEPT_RATIO = 0.25
"""Of each layer's experts: near the least budget that serves well, where good and bad predictions differ most."""


class StepBack:
    """`standing` is the contender to go by: the first, until another covered more by `margin_ratio` of late.

    A preferred one is gone back to once it covers no less than the one that stands. What a report says halves in weight
    after `window_tokens` more, and nothing changes before the first `min_tokens`; both, as in the predictors, in
    choices of the busiest layer.
    """

    def __init__(
        self, num_contenders: int, *, window_tokens: float, min_tokens: float, margin_ratio: float = 0.01
    ) -> None:
        self.standing = 0
        self._window_tokens = window_tokens
        self._min_tokens = min_tokens
        self._margin_ratio = margin_ratio
        self._covered = np.zeros(num_contenders)
        self._choices = 0.0
        self._tokens = 0.0

    def covered_ratio(self, contender: int) -> float:
        """Of the latest choices; 0 before any."""
        return float(self._covered[contender] / self._choices) if self._choices else 0.0

    def observe(self, predictions: Sequence[FloatGrid], counts: CountGrid) -> None:
        """`predictions`: each contender's [L, E], made before it learnt from `counts`."""
        tokens = tokens_in(counts)
        kept = 0.5 ** (tokens / self._window_tokens)
        self._covered = kept * self._covered + [np.vdot(foremost(prediction), counts) for prediction in predictions]
        self._choices = kept * self._choices + float(counts.sum())
        self._tokens += tokens
        if self._tokens >= self._min_tokens:
            self.standing = self._choose()

    def _choose(self) -> int:
        margin = self._margin_ratio * self._choices
        standing = self._covered[self.standing]
        best = int(self._covered.argmax())
        if self._covered[best] > standing + margin:
            return best
        return int((self._covered >= standing)[: self.standing + 1].argmax())


def foremost(prediction: FloatGrid, kept_ratio: float = KEPT_RATIO) -> FloatGrid:
    """[L, E]: the share of each expert that a plan of the layer's foremost would hold; those tied share what is left.

    Each row sums to `kept_ratio` of E, at least one expert.
    """
    num_experts = prediction.shape[1]
    num_kept = max(1, round(kept_ratio * num_experts))
    border = np.partition(prediction, num_experts - num_kept, axis=1)[:, num_experts - num_kept, None]
    above, tied = prediction > border, prediction == border
    left = num_kept - above.sum(axis=1, keepdims=True)
    return np.asarray(above + tied * (left / tied.sum(axis=1, keepdims=True)))
