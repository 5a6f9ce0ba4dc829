"""What is trained on recorded routing, as arrays of the learned file: each predictor under a prefix of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt

from emoe.core.experts import ExpertGrid
from emoe.eval.profile import fit_own_routing
from emoe.eval.recording import RowRouting
from emoe.train.sequence import train_sequence
from emoe.train.sequence_data import PromptCounts

Say = Callable[[str], None]

MIN_SEQUENCE_PROMPTS = 16
"""Of fewer, a network learns nothing that their mean does not say."""


def learn(rows: Sequence[RowRouting], grid: ExpertGrid, *, seed: int, say: Say) -> dict[str, npt.NDArray[Any]]:
    """Nothing of what there are too few rows for."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    say("learning what a request's own routing foretells")
    own_routing = fit_own_routing(rows, grid, seed=seed)
    if own_routing is not None:
        arrays |= own_routing.arrays()
    if len(rows) >= MIN_SEQUENCE_PROMPTS:
        prompts = [PromptCounts(task=row.task, counts=row.count(grid)) for row in rows]
        arrays |= train_sequence(prompts, moe_layers=grid.moe_layers, top_k=grid.rule.top_k, seed=seed, say=say)
    return arrays
