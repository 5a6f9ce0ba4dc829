"""Task profiles as tests need them: each task leans on one expert of every layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from emoe.core.experts import FloatGrid
from emoe.store.profile import (
    PROFILE_FILE,
    Lengths,
    Profile,
    Sensitivity,
    TaskProfile,
    render_profile,
)
from emoe.store.store import ExpertStore

FAVOUR = 0.9
"""Of a task's choices, those of its own expert."""


def leaning(shape: tuple[int, int], moe_layers: tuple[int, ...], index: int, favour: float = FAVOUR) -> FloatGrid:
    """[L, E], rows of MoE layers sum to one."""
    grid = np.zeros(shape)
    grid[list(moe_layers)] = (1 - favour) / (shape[1] - 1)
    grid[list(moe_layers), index] = favour
    return grid


def task_profile(
    prompt: FloatGrid,
    answer: FloatGrid | None = None,
    *,
    prompt_tokens: float = 60.0,
    answer_tokens: float = 20.0,
    similarity: tuple[float, ...] | None = None,
) -> TaskProfile:
    """`similarity`: an entry for each MoE layer, as `Sensitivity` has them."""
    return TaskProfile(
        num_requests=10,
        num_tokens=800,
        prompt_tokens=lengths(prompt_tokens),
        answer_tokens=lengths(answer_tokens),
        prompt_frequencies=prompt,
        answer_frequencies=prompt if answer is None else answer,
        sensitivity=similarity and Sensitivity(similarity=similarity, perplexity_ratio=(1.0,) * len(similarity)),
    )


def lengths(mean: float) -> Lengths:
    return Lengths(mean=mean, p50=mean, p90=mean, p99=mean)


def profile(
    tasks: Mapping[str, TaskProfile],
    *,
    shape: tuple[int, int],
    moe_layers: tuple[int, ...],
    digest: str = "a" * 64,
    fingerprint: str = "f" * 64,
    learned_sha256: str | None = None,
) -> Profile:
    return Profile(
        family="qwen2_moe",
        digest=digest,
        fingerprint=fingerprint,
        shape=shape,
        moe_layers=moe_layers,
        tasks=tasks,
        learned_sha256=learned_sha256,
    )


def write_beside(
    folder: Path, *, answer_tokens: float = 20.0, learned_sha256: str | None = None, **experts: int
) -> Path:
    """A profile of the checkpoint in `folder`: task -> the expert that it leans on."""
    with ExpertStore.open(folder) as store:
        grid = store.grid
        tasks = {
            task: task_profile(leaning(grid.shape, grid.moe_layers, index), answer_tokens=answer_tokens)
            for task, index in experts.items()
        }
        made = profile(
            tasks,
            shape=grid.shape,
            moe_layers=grid.moe_layers,
            digest=store.digest,
            fingerprint=store.fingerprint(),
            learned_sha256=learned_sha256,
        )
    path = folder / PROFILE_FILE
    path.write_bytes(render_profile(made))
    return path
