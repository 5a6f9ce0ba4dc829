"""Prompts of random tokens: the same for every engine, different for every request."""

from __future__ import annotations

import random

from emoe.bench.failures import BenchmarkError
from emoe.store.store import ExpertStore


def random_prompts(num_prompts: int, num_tokens: int, *, vocab_size: int, seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(vocab_size) for _ in range(num_tokens)] for _ in range(num_prompts)]


def vocab_size_of(store: ExpertStore) -> int:
    size = store.config.get("vocab_size")
    if not isinstance(size, int):
        raise BenchmarkError(f"{store.folder / 'config.json'} has no vocab_size to draw a prompt's tokens from")
    return size
