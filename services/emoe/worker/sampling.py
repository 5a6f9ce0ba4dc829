"""Picks the next token of each sequence from its logits, each by its own parameters.

Greedy rows are picked together. A sampled row adds Gumbel noise keyed by its seed and position (the Gumbel-max trick),
so a sequence draws the same tokens whoever else is in the batch. V vocabulary, N sequences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence as Seq

import torch

from emoe.core.generation import Sampling

_MIX = 0x9E3779B97F4A7C15
_MASK = (1 << 63) - 1
MIN_TEMPERATURE = 1e-5
"""Below it no draw differs from the best token."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
    """One row's parameters: `seed` is set, drawn if the client gave none; `position` counts its answer's tokens."""

    sampling: Sampling
    seed: int
    position: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picked:
    token_id: int
    logprobs: tuple[tuple[int, float], ...] = ()
    """(token id, log-probability): the picked token, then the best ones; of the model's distribution, untempered."""


Sampler = Callable[[torch.Tensor, Seq[Draw]], list[Picked | None]]
"""As `sample`."""


def sample(logits_NV: torch.Tensor, draws: Seq[Draw]) -> list[Picked | None]:
    """One token a row; None for a row whose logits are no numbers, which says nothing of the others."""
    best = logits_NV.max(-1)
    tokens, are_numbers = best.indices.tolist(), best.values.isfinite().tolist()
    return [
        _pick(row, draw, token) if is_number else None
        for row, draw, token, is_number in zip(logits_NV, draws, tokens, are_numbers, strict=True)
    ]


def _pick(logits_V: torch.Tensor, draw: Draw, best: int) -> Picked:
    token = best if draw.sampling.temperature == 0 else _draw_one(logits_V, draw)
    return Picked(token_id=token, logprobs=_logprobs(logits_V, token, draw.sampling.num_logprobs))


def _draw_one(logits_V: torch.Tensor, draw: Draw) -> int:
    above_V = logits_V.float() - logits_V.max()  # at most 0, so no temperature makes them too large
    scaled_V = keep_top(above_V / max(draw.sampling.temperature, MIN_TEMPERATURE), draw.sampling)
    generator = torch.Generator().manual_seed((draw.seed * _MIX + draw.position) & _MASK)
    noise_V = torch.empty(scaled_V.shape).exponential_(generator=generator).log_().neg_()
    return int((scaled_V + noise_V.to(scaled_V.device)).argmax())


def keep_top(logits_V: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Minus infinity outside the `top_k` best and outside the smallest set of mass `top_p`; the best always stays."""
    if sampling.top_k and sampling.top_k < len(logits_V):
        best = logits_V.topk(sampling.top_k)
        logits_V = torch.full_like(logits_V, float("-inf")).scatter(0, best.indices, best.values)
    if sampling.top_p < 1:
        ordered, order = logits_V.sort(descending=True)
        mass_before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        logits_V = logits_V.masked_fill(
            torch.zeros_like(order, dtype=torch.bool).scatter(0, order, mass_before >= sampling.top_p), float("-inf")
        )
    return logits_V


def _logprobs(logits_V: torch.Tensor, token: int, num_best: int | None) -> tuple[tuple[int, float], ...]:
    if num_best is None:
        return ()
    logprobs_V = logits_V.float().log_softmax(-1)
    best = logprobs_V.topk(min(num_best, len(logprobs_V))) if num_best else None
    ranked = [] if best is None else list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return ((token, float(logprobs_V[token])), *ranked)
