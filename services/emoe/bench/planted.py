"""Checkpoints of real shapes whose routing has planted, task-like skew: random routers are near uniform.

A task is every `num_tasks`-th token of the vocabulary. Its tokens' embeddings share a direction; in every layer a
subset of experts of the task's own has that direction in its router rows, strongly enough that about `concentration`
of the task's choices fall on the subset. The output head favours tokens of the same task, so answers stay in it.
Knows no files: `planted_files` writes them.
"""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import numpy.typing as npt

from emoe.bench.failures import BenchmarkError

FIRST_TOKEN = 3
"""Those before it are no task's: they stand for padding, beginning and end."""
DRAWS = 4096
STEPS = 40

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlantedShape:
    """`family`: mixtral or qwen3_moe. `subset`: experts of a layer that a task favours."""

    family: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_experts: int
    top_k: int
    vocab_size: int = 32000
    num_tasks: int = 7
    subset: int = 4
    concentration: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.top_k <= self.subset < self.num_experts:
            raise BenchmarkError(f"a task's subset must hold {self.top_k} to {self.num_experts - 1}, not {self.subset}")
        uniform = self.subset / self.num_experts
        if not uniform <= self.concentration < 1:
            raise BenchmarkError(f"concentration must be from {uniform:g} to below 1, not {self.concentration:g}")


SHAPES = {
    "mix-s": PlantedShape(
        family="mixtral",
        hidden_size=512,
        intermediate_size=1792,
        num_layers=8,
        num_heads=8,
        num_kv_heads=4,
        head_dim=64,
        num_experts=16,
        top_k=2,
    ),
    "qwen3-s": PlantedShape(
        family="qwen3_moe",
        hidden_size=768,
        intermediate_size=384,
        num_layers=8,
        num_heads=12,
        num_kv_heads=4,
        head_dim=64,
        num_experts=64,
        top_k=8,
        subset=16,
    ),
    "qwen3moe-m": PlantedShape(
        family="qwen3_moe",
        hidden_size=1024,
        intermediate_size=768,
        num_layers=12,
        num_heads=16,
        num_kv_heads=4,
        head_dim=64,
        num_experts=64,
        top_k=8,
        subset=16,
    ),
}
"""783 MB, 0.95 GB and 3.8 GB in bfloat16."""


def task_of_token(shape: PlantedShape, token: int) -> int:
    return token % shape.num_tasks


def task_subsets(shape: PlantedShape) -> npt.NDArray[np.intp]:
    """[task, layer, subset]: the experts that a task favours. Each task draws its own."""
    draw = np.random.default_rng([shape.seed, 1])
    scores = draw.random((shape.num_tasks, shape.num_layers, shape.num_experts))
    return np.sort(np.argsort(scores, axis=-1)[..., : shape.subset], axis=-1)


def draw_prompts(
    shape: PlantedShape, *, task: int, num_prompts: int, num_tokens: int, seed: int = 0
) -> list[list[int]]:
    """Random tokens of one task."""
    draw = random.Random(f"{shape.seed}/{task}/{seed}")
    tokens = [token for token in range(FIRST_TOKEN, shape.vocab_size) if task_of_token(shape, token) == task]
    return [draw.choices(tokens, k=num_tokens) for _ in range(num_prompts)]


def favour(shape: PlantedShape) -> float:
    """By how many standard deviations a subset's router logits must lie above the others', so that `concentration` of
    the top-k choices are the subset's; found by drawing."""
    draw = np.random.default_rng(0)
    noise = draw.standard_normal((DRAWS, shape.num_experts))
    low, high = 0.0, 16.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        if _share(noise, middle, shape) < shape.concentration:
            low = middle
        else:
            high = middle
    return high


def _share(noise: Floats, favoured_by: float, shape: PlantedShape) -> float:
    logits = noise.copy()
    logits[:, : shape.subset] += favoured_by
    chosen = np.argpartition(-logits, shape.top_k - 1, axis=1)[:, : shape.top_k]
    return float((chosen < shape.subset).mean())
