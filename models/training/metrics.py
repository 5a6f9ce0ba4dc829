"""What an evaluation counts, and the figures that follow from the counts: no model, no files.

L layers, E experts.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Negative log-likelihoods (nats) summed over next tokens, and how often each expert was chosen."""

    response_nll: float
    num_response_tokens: int
    nll: float
    num_tokens: int
    choices_LE: np.ndarray  # noqa: N815 (shape suffix)

    @property
    def response_perplexity(self) -> float:
        return math.exp(self.response_nll / self.num_response_tokens)

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll / self.num_tokens)


def sum_scores(scores: Sequence[Score]) -> Score:
    return Score(
        response_nll=sum(score.response_nll for score in scores),
        num_response_tokens=sum(score.num_response_tokens for score in scores),
        nll=sum(score.nll for score in scores),
        num_tokens=sum(score.num_tokens for score in scores),
        choices_LE=np.sum([score.choices_LE for score in scores], axis=0),
    )


def top_share(choices_LE: np.ndarray, *, share: float) -> np.ndarray:
    """[L, E] mask of each layer's most chosen experts, `share` of its number; the lower index wins a tie."""
    num_kept = max(1, round(choices_LE.shape[1] * share))
    order = np.argsort(-choices_LE, axis=1, kind="stable")[:, :num_kept]
    mask_LE = np.zeros(choices_LE.shape, dtype=bool)
    np.put_along_axis(mask_LE, order, True, axis=1)
    return mask_LE


def pool(choices: Sequence[np.ndarray]) -> np.ndarray:
    """[L, E] shares over all tasks, each task weighing the same whatever its number of tokens."""
    shares_LE: np.ndarray = np.mean([choices_LE / choices_LE.sum() for choices_LE in choices], axis=0)
    return shares_LE


def coverage(choices_LE: np.ndarray, mask_LE: np.ndarray) -> float:
    """The share of token-expert choices that fall on experts of the mask."""
    return float(choices_LE[mask_LE].sum() / choices_LE.sum())


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExactMatch:
    """`chance` is the share that the best constant answer would get right."""

    rows: int
    exact_match: float
    chance: float


def exact_match(answers: Sequence[str], expected: Sequence[str]) -> ExactMatch:
    truth = [_plain(text) for text in expected]
    right = sum(_plain(answer) == label for answer, label in zip(answers, truth, strict=True))
    majority = max(collections.Counter(truth).values())
    return ExactMatch(rows=len(truth), exact_match=right / len(truth), chance=majority / len(truth))


def combine(parts: Sequence[ExactMatch]) -> ExactMatch:
    """Over the rows of all parts; the constant answer may differ from part to part."""
    rows = sum(part.rows for part in parts)
    return ExactMatch(
        rows=rows,
        exact_match=sum(part.rows * part.exact_match for part in parts) / rows,
        chance=sum(part.rows * part.chance for part in parts) / rows,
    )


def _plain(text: str) -> str:
    return text.strip().casefold()
