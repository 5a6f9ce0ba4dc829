"""Answers that are known beforehand: a worker that gives them tells how likely its model held each of their tokens.

Teacher forcing in a served request: only the choice among a step's logits is taken away, so the answer's speed and its
perplexity come of one run. A request names its answer by its seed. N sequences, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from emoe.worker.sampling import Draw, Picked, Sampler, sample

FIRST_SEED = 1 << 40
"""No seed that anyone else gives: a worker that warms up samples as ever."""


def write_answers(path: Path, answers: Sequence[Sequence[int]]) -> None:
    path.write_text(json.dumps([list(answer) for answer in answers]))


def read_answers(path: Path) -> dict[int, tuple[int, ...]]:
    """By seed."""
    return {FIRST_SEED + number: tuple(answer) for number, answer in enumerate(json.loads(path.read_text()))}


def forced_sampler(answers: Mapping[int, Sequence[int]]) -> Sampler:
    """Picks these answers' tokens for requests with their seeds, and for others as ever."""

    def force(logits_NV: torch.Tensor, draws: Sequence[Draw]) -> list[Picked | None]:
        if any(draw.seed not in answers for draw in draws):
            return sample(logits_NV, draws)
        return pick_forced(logits_NV, [answers[draw.seed][draw.position] for draw in draws])

    return force


def pick_forced(logits_NV: torch.Tensor, token_ids: Sequence[int]) -> list[Picked | None]:
    """These tokens and their log-probabilities. None for a row whose logits are no numbers."""
    wanted_N1 = torch.tensor(token_ids, device=logits_NV.device)[:, None]
    logits_NV = logits_NV.float()
    logprobs_N = logits_NV.gather(1, wanted_N1)[:, 0] - logits_NV.logsumexp(-1)
    return [
        Picked(token_id=token, logprobs=((token, logprob),)) if is_number else None
        for token, logprob, is_number in zip(
            token_ids, logprobs_N.tolist(), logprobs_N.isfinite().tolist(), strict=True
        )
    ]
