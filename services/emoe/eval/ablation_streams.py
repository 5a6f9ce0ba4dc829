"""Long streams of requests for ablations: which tasks come, in what mix, and how the mix changes.

Rows may come again in a stream: a mix of few tasks would soon run out of them. Everything is drawn from a seed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from emoe.eval.harness import Harness
from emoe.eval.rows import EncodedRow
from emoe.eval.streams import Running, Stream

MIX_PROMPTS = 40
"""A changing mix is another after so many prompts, in the mean: no p falls in step with it."""
MIX_CONCENTRATION = 0.3
"""Of the Dirichlet distribution that mixes are drawn from: two or three tasks are most of each."""

Mixes = npt.NDArray[np.float64]
"""[prompts, tasks], rows summing to one."""


def steady_mix(num_prompts: int, num_tasks: int) -> Mixes:
    return np.full((num_prompts, num_tasks), 1 / num_tasks)


def changing_mix(num_prompts: int, num_tasks: int, *, seed: int) -> Mixes:
    drawn = np.random.default_rng(seed)
    mixes = np.zeros((num_prompts, num_tasks))
    begin = 0
    while begin < num_prompts:
        end = begin + int(drawn.geometric(1 / MIX_PROMPTS))
        mixes[begin:end] = drawn.dirichlet(np.full(num_tasks, MIX_CONCENTRATION))
        begin = end
    return mixes


def shifted_mix(num_prompts: int, num_tasks: int, *, seed: int) -> tuple[Mixes, tuple[int, ...]]:
    """One half of the tasks, alike, until the middle, the other half from there on; and which were the first."""
    order = np.random.default_rng(seed).permutation(num_tasks)
    first, second = order[: num_tasks // 2], order[num_tasks // 2 :]
    mixes = np.zeros((num_prompts, num_tasks))
    mixes[: num_prompts // 2, first] = 1 / max(1, len(first))
    mixes[num_prompts // 2 :, second] = 1 / len(second)
    return mixes, tuple(int(task) for task in first)


def draw_stream(harness: Harness, mixes: Mixes, *, seed: int) -> Stream:
    """The rows of a task come in a random order, all of them before any comes again."""
    drawn, of_task = random.Random(seed), rows_by_task(harness)
    tasks = sorted(of_task)
    decks: dict[str, list[EncodedRow]] = {task: [] for task in tasks}
    requests: list[Running] = []
    for mix in mixes:
        (task,) = drawn.choices(tasks, weights=mix.tolist())
        if not decks[task]:
            decks[task] = drawn.sample(of_task[task], len(of_task[task]))
        requests.append(harness.begin(decks[task].pop()))
    conditions = harness.conditions
    return conditions.stream(requests, num_together=conditions.num_together)


def rows_by_task(harness: Harness) -> Mapping[str, Sequence[EncodedRow]]:
    found: dict[str, list[EncodedRow]] = {}
    for row in harness.full:
        found.setdefault(row.task, []).append(row)
    return found


def noisy_labels(rows: Sequence[EncodedRow], ratio: float, *, seed: int) -> list[str]:
    """Each row's task or, for `ratio` of the rows, another one."""
    drawn, tasks = random.Random(seed), sorted({row.task for row in rows})
    # One draw a row whatever the ratio, so that more noise only adds to less.
    wrong = [(drawn.random() < ratio, drawn.random()) for _ in rows]
    labels = []
    for row, (is_wrong, place) in zip(rows, wrong, strict=True):
        others = [task for task in tasks if task != row.task]
        labels.append(others[int(place * len(others))] if is_wrong and others else row.task)
    return labels
