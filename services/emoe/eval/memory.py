"""Training prompts as retrieval remembers them: by what signs each is found, and what it went on to route.

Made from rows that ran with all experts resident. Knows no task. N rows, D hidden, L layers, E experts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from emoe.core.errors import InvalidRequestError
from emoe.core.experts import ExpertGrid
from emoe.core.own_routing import Array
from emoe.eval.profile import Moments, find_moments
from emoe.eval.recording import RowRouting, frequency
from emoe.eval.rows import EncodedRow
from emoe.eval.scoring import ScoringModel


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PromptMemory:
    """Frequencies: each layer's row sums to one."""

    embeddings: Array
    """[N, D]: the mean of each prompt's token embeddings."""
    first_gates: Array
    """[N, E]: what the first MoE layer routed of the prompt."""
    answers: Array
    """[N, L, E]"""
    moments: Moments


def build_memory(
    model: ScoringModel, rows: Sequence[EncodedRow], recorded: Sequence[RowRouting], *, seed: int = 0
) -> PromptMemory:
    """`recorded`: the routing of `rows`, in their order. InvalidRequestError when no answer has two tokens."""
    grid = model.grid
    moments = find_moments(recorded, grid, seed=seed)
    if not len(moments.num_tokens):
        raise InvalidRequestError("no training row has an answer of two tokens: nothing can be retrieved; give others")
    return PromptMemory(
        embeddings=np.stack([embed_prompt(model, row) for row in rows]),
        first_gates=np.stack([first_gate(row, grid) for row in recorded]),
        answers=np.stack([_answer(row, grid) for row in recorded]),
        moments=moments,
    )


def embed_prompt(model: ScoringModel, row: EncodedRow) -> Array:
    return model.mean_embedding(row.token_ids[: row.num_prompt_tokens])


def first_gate(row: RowRouting, grid: ExpertGrid) -> Array:
    return np.asarray(frequency(row.count(grid, 0, row.num_prompt_tokens))[grid.moe_layers[0]])


def _answer(row: RowRouting, grid: ExpertGrid) -> Array:
    """An answer of one token never ran: the prompt stands for it."""
    answer = row.count(grid, row.num_prompt_tokens)
    return frequency(answer if answer.any() else row.count(grid))
