"""What a sequence predictor learns from: prompts as elements, in orders in which a service might see them.

An element is the relative frequency with which a prompt's tokens chose each expert. eMoE (section 4.1) takes expert
indices, k of a layer; a prompt of many tokens uses nearly all experts, so indices would say little, and what is wanted
of the prediction is a frequency. Orders: one task's run, a mix of tasks, and a mix that drifts from task to task.
N prompts, B sequences, R prompts of a sequence, M layers with experts, E experts a layer.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from emoe.core.experts import CountGrid
from emoe.core.sequence_predictor import element_features
from emoe.core.tasks import UNKNOWN

Array = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
DRIFT_WIDTH = 0.12
"""Standard deviation of the time for which a task is in fashion, as a share of the whole order."""
LABELLED_RUNS, RUNS, MIXES = 0.4, 0.6, 0.8
"""Of the sequences learnt from, cumulated: runs with their label, runs without, mixes; the others drift."""
LEAST_SHARE = 1e-9
"""Of a task in a mix, so that prompts of an unlikely one come when there are no others."""
PRIOR_TOKENS = 256.0
"""Of the mean of all tasks, mixed into each: as `FrequencyPredictor` has it."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PromptCounts:
    """One request: `counts` [L, E] of the experts that its tokens chose, with all of them resident."""

    task: str
    counts: CountGrid


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Elements:
    """`features` [N, M, E], square roots of `frequencies`; `entries` [N]: the place of its task in `tasks`."""

    tasks: tuple[str, ...]
    features: Array
    frequencies: Array
    entries: Indices

    @property
    def unknown_entry(self) -> int:
        """The one behind the tasks'."""
        return len(self.tasks)

    def prompts_of(self, entry: int) -> Indices:
        return np.flatnonzero(self.entries == entry)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Sequences: `prompts` [B, R], the task `entries` [B, R] that the predictor is told, and which `count` [B, R]: a
    sequence that has no more prompts ends before the others, filled up with its first one."""

    prompts: Indices
    entries: Indices
    count: npt.NDArray[np.bool_]

    def part(self, rows: slice) -> Batch:
        return Batch(prompts=self.prompts[rows], entries=self.entries[rows], count=self.count[rows])


def build_elements(prompts: Sequence[PromptCounts], moe_layers: Sequence[int]) -> Elements:
    """ValueError when there is none."""
    if not prompts:
        raise ValueError("no prompt to learn sequences from")
    tasks = tuple(sorted({prompt.task for prompt in prompts} - {UNKNOWN}))
    place = {task: entry for entry, task in enumerate(tasks)}
    features = element_features(np.stack([prompt.counts[list(moe_layers)] for prompt in prompts]))
    return Elements(
        tasks=tasks,
        features=features,
        frequencies=features**2,
        entries=np.array([place.get(prompt.task, len(tasks)) for prompt in prompts], dtype=np.int64),
    )


def task_priors(prompts: Sequence[PromptCounts], tasks: Sequence[str], moe_layers: Sequence[int], top_k: int) -> Array:
    """[tasks + 1, M, E]: each task's frequency, leaning on the mean of all; the last entry is that mean."""
    sums = {task: np.zeros(prompts[0].counts.shape) for task in tasks}
    for prompt in prompts:
        if prompt.task in sums:
            sums[prompt.task] += prompt.counts
    grids = np.stack([grid[list(moe_layers)] for grid in sums.values()])
    mean = _shares(_shares(grids).mean(axis=0))
    mixed = _shares(grids + PRIOR_TOKENS * top_k * mean)
    return np.concatenate([mixed, mean[None]]).astype(np.float32)


def pools_of(elements: Elements, allowed: Indices) -> list[Indices]:
    """The `allowed` prompts, each task's together; those of no task are one too."""
    own = (np.intersect1d(elements.prompts_of(entry), allowed) for entry in range(len(elements.tasks) + 1))
    return [pool for pool in own if len(pool)]


def draw_batch(
    elements: Elements, pools: Sequence[Indices], *, num: int, length: int, random: np.random.Generator
) -> Batch:
    """`num` sequences over the prompts of `pools`: runs of a task with and without its label, mixes, drifting mixes.

    Labels are known in runs alone: with labels, a task's prompts are a sequence of their own whatever lies between.
    A sequence never has a prompt twice, or predictors would learn to foretell repetition.
    """
    prompts = np.zeros((num, length), dtype=np.int64)
    entries = np.full((num, length), elements.unknown_entry, dtype=np.int64)
    count = np.zeros((num, length), dtype=np.bool_)
    for row, kind in enumerate(random.random(num)):
        drawn = (
            _draw_run(pools, length, random) if kind < RUNS else _draw_mix(pools, length, random, drifts=kind > MIXES)
        )
        prompts[row], prompts[row, : len(drawn)] = drawn[0], drawn
        count[row, : len(drawn)] = True
        if kind < LABELLED_RUNS:
            entries[row] = elements.entries[prompts[row]]
    return Batch(prompts=prompts, entries=entries, count=count)


def _draw_run(pools: Sequence[Indices], length: int, random: np.random.Generator) -> Indices:
    return _some_of(pools[int(random.integers(len(pools)))], length, random)


def _some_of(pool: Indices, num: int, random: np.random.Generator) -> Indices:
    return random.choice(pool, size=min(num, len(pool)), replace=False)


def _draw_mix(pools: Sequence[Indices], length: int, random: np.random.Generator, *, drifts: bool) -> Indices:
    """Of tasks drawn by a mix of their own, or a window of a longer drift; a pool that is empty is passed over."""
    mix = np.tile(random.dirichlet(np.full(len(pools), 0.5)), (length, 1))
    weights = _drifting(len(pools), length, random) if drifts else mix
    left = [_some_of(pool, length, random).tolist() for pool in pools]
    has_any = np.ones(len(pools))
    drawn: list[int] = []
    for share, chance in zip(weights, random.random(length), strict=True):
        if not has_any.any():
            break
        reached = np.cumsum((share + LEAST_SHARE) * has_any)
        place = int(np.searchsorted(reached, chance * reached[-1], side="right"))
        drawn.append(left[place].pop())
        has_any[place] = bool(left[place])
    return np.array(drawn, dtype=np.int64)


def _drifting(num_pools: int, length: int, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """[R, pools]"""
    centres = random.permutation(num_pools) / num_pools
    begin, span = random.random(), random.uniform(0.05, 0.5)
    times = (begin + span * np.arange(length) / length) % 1.0
    return drift_weights(times, centres)


def drift_weights(times: npt.NDArray[np.float64], centres: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[times, centres]: each one's share at a time in [0, 1), which goes round; rows sum to one."""
    distance = np.abs(times[:, None] - centres)
    distance = np.minimum(distance, 1 - distance)
    weights = np.exp(-0.5 * (distance / DRIFT_WIDTH) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def order_runs(tasks: Sequence[str], random: np.random.Generator) -> list[int]:
    """Places of prompts, one task's after the other's; within a task in any order."""
    shuffled = random.permutation(len(tasks))
    return sorted((int(place) for place in shuffled), key=lambda place: tasks[place])


def order_mixed(tasks: Sequence[str], random: np.random.Generator, arrivals: Sequence[str] | None = None) -> list[int]:
    """In any order; with `arrivals`, tasks come as these did, as long as there are prompts of them."""
    if arrivals is None:
        return [int(place) for place in random.permutation(len(tasks))]
    left = _pools_of(tasks, random)
    order = []
    for task in arrivals:
        if task not in left:
            continue
        if not left[task]:
            break
        order.append(left[task].pop())
    return order


def order_drifting(tasks: Sequence[str], random: np.random.Generator) -> list[int]:
    """A mix that slides from task to task, until all prompts came."""
    left = _pools_of(tasks, random)
    names = sorted(left)
    centres = random.permutation(len(names)) / len(names)
    order: list[int] = []
    while any(left.values()):
        weights = drift_weights(np.array([len(order) / len(tasks)]), centres)[0]
        weights = weights * [bool(left[name]) for name in names]
        order.append(left[names[int(random.choice(len(names), p=weights / weights.sum()))]].pop())
    return order


ORDERS: dict[str, Callable[..., list[int]]] = {"runs": order_runs, "mixed": order_mixed, "drift": order_drifting}


def _pools_of(tasks: Sequence[str], random: np.random.Generator) -> dict[str, list[int]]:
    pools: dict[str, list[int]] = collections.defaultdict(list)
    for place in random.permutation(len(tasks)):
        pools[tasks[place]].append(int(place))
    return dict(pools)


def _shares(grids: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    sums = grids.sum(axis=-1, keepdims=True)
    return np.asarray(np.divide(grids, sums, out=np.full_like(grids, 1 / grids.shape[-1]), where=sums > 0))
