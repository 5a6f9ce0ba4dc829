"""The prompts of a contest: a planted model's tasks in turn, random tokens for any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from emoe.bench.planted import PlantedShape, draw_prompts
from emoe.bench.planted_files import read_shape
from emoe.bench.prompts import random_prompts, vocab_size_of
from emoe.store.store import ExpertStore


def prompts_of(folder: Path, *, num_tokens: int) -> Callable[[int, int], list[list[int]]]:
    """(batch, round) -> prompts. A round's first prompt is of the next task, those beside it of the tasks after it."""
    shape = read_shape(folder)
    if shape is not None:
        return lambda batch, number: _planted(shape, batch, number, num_tokens)
    with ExpertStore.open(folder) as store:
        vocab_size = vocab_size_of(store)
    return lambda batch, number: random_prompts(batch, num_tokens, vocab_size=vocab_size, seed=number * 1000 + batch)


def _planted(shape: PlantedShape, batch: int, number: int, num_tokens: int) -> list[list[int]]:
    return [
        draw_prompts(
            shape,
            task=(number + place) % shape.num_tasks,
            num_prompts=1,
            num_tokens=num_tokens,
            seed=number * 1000 + place,
        )[0]
        for place in range(batch)
    ]
