"""The tasks whose requests will follow on each worker: what it is planned for beside its running requests.

Where several workers are, each is planned for its own tasks: those that schedulers send it, and those that are to be at
home with it (`homes`). How much the homes count is seen from whether requests go where residents suit them: a scheduler
that does not place by residency has each worker planned for what comes to it. Knows neither gRPC nor plans.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from emoe.core.experts import FloatGrid
from emoe.core.tasks import UNKNOWN
from emoe.loader.coverage import overlap
from emoe.loader.homes import Homes, Situation, settle
from emoe.loader.task_mix import Placed, TaskMix
from emoe.loader.workers import WorkerState

LEAST_TILT = 0.25
"""What the homes count at least: without it nobody would ever begin to differ."""
FIRST_TRUST, FULL_TRUST = 0.3, 0.6
"""Homes count in full from here on: where no worker is ever full, requests would all go to the best one."""
MEMORY_PROMPTS = 200.0
FORGOTTEN_RATIO = 1e-3
LEAST_DIFFERENCE = 0.01
"""Of coverage: while workers differ by less, where requests go says nothing."""
SHARE_STEP = 0.05
"""Smaller changes of a worker's mix are no reason to plan anew."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerMix:
    """A worker's part of the mix, as `demand_of` reads it."""

    task_tokens: Mapping[str, float]
    waiting_tokens: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def rounded(self) -> tuple[tuple[str, float], ...]:
        """Tasks and their shares: two mixes that round to the same want the same experts, nearly enough."""
        total = sum(self.task_tokens.values()) or 1.0
        shares = {task: round(amount / total / SHARE_STEP) * SHARE_STEP for task, amount in self.task_tokens.items()}
        return tuple(sorted((task, share) for task, share in shares.items() if share))


class Following:
    """Remembers the homes, how loads have been, and how far requests go where residents suit them."""

    def __init__(self) -> None:
        self.homes: Homes = {}
        self.trust = FIRST_TRUST
        self._loads: dict[str, float] = {}
        self._num_prompts = 0

    def split(
        self,
        mix: TaskMix,
        states: Sequence[WorkerState],
        per_token: Mapping[str, FloatGrid],
        coverage: Mapping[str, Mapping[str, float]],
    ) -> Mapping[str, WorkerMix] | None:
        """Worker -> its part. None where there is nothing to tell workers apart: one worker, or no scheduler that says
        what it sends where."""
        placed = {state.worker_id: mix.placed.get(state.worker_id, {}) for state in states}
        if len(states) < 2 or not any(placed.values()):
            return None
        sent = _by_task(placed)
        tokens = _tokens_to_come(mix, sent)
        self._observe(tokens, pull(placed, coverage), mix.num_prompts)
        suits = _suits(placed, sent, coverage)
        self.homes = settle(self.homes, _situation(self._loads, states, per_token, suits))
        return {worker_id: self._part_of(worker_id, mine, sent, tokens) for worker_id, mine in placed.items()}

    def _part_of(
        self, worker_id: str, mine: Mapping[str, float], sent: Mapping[str, float], tokens: Mapping[str, float]
    ) -> WorkerMix:
        """The tasks that it is sent, in the measure of now, and those at home with it, in that of the longer run."""
        tilt = max(LEAST_TILT, min(1.0, self.trust / FULL_TRUST))
        amounts = {task: tilt * share * self._loads[task] for task, share in self.homes[worker_id].items()}
        for task, amount in mine.items():
            amounts[task] = amounts.get(task, 0.0) + (1 - tilt) * tokens[task] * amount / (sent[task] or 1.0)
        return WorkerMix(task_tokens=amounts)

    def _observe(self, tokens: Mapping[str, float], pulled: float | None, num_prompts: int) -> None:
        """The more prompts came since, the more what is seen now counts; a task never seen counts at once."""
        weight = 1 - math.exp(-max(0, num_prompts - self._num_prompts) / MEMORY_PROMPTS)
        self._num_prompts = num_prompts
        before = {task: self._loads.get(task, tokens.get(task, 0.0)) for task in self._loads.keys() | tokens.keys()}
        loads = {task: load + weight * (tokens.get(task, 0.0) - load) for task, load in before.items()}
        least = FORGOTTEN_RATIO * sum(loads.values())
        self._loads = {task: load for task, load in loads.items() if load > least or task in tokens}
        if pulled is not None:
            self.trust += weight * (pulled - self.trust)


def pull(placed: Placed, coverage: Mapping[str, Mapping[str, float]]) -> float | None:
    """How far requests are sent where residents suit them: 0 no more than by chance, 1 always to the best worker.

    None where it makes no difference."""
    gained = possible = 0.0
    for task, amount in _by_task(placed).items():
        shares = {worker_id: coverage.get(worker_id, {}).get(task, 0.0) for worker_id in placed}
        by_chance = sum(shares.values()) / len(shares)
        gained += sum(placed[worker_id].get(task, 0.0) * (share - by_chance) for worker_id, share in shares.items())
        possible += amount * (max(shares.values()) - by_chance)
    return max(0.0, gained / possible) if possible > LEAST_DIFFERENCE * sum(_by_task(placed).values()) else None


def _tokens_to_come(mix: TaskMix, sent: Mapping[str, float]) -> dict[str, float]:
    """What came lately comes again, and what waits."""
    tokens: dict[str, float] = defaultdict(float, mix.waiting_tokens)
    for task, amount in sent.items():
        tokens[task] += amount * mix.tokens_per_request(task)
    return dict(tokens)


def _by_task(placed: Placed) -> Mapping[str, float]:
    totals: dict[str, float] = defaultdict(float)
    for tasks in placed.values():
        for task, amount in tasks.items():
            totals[task] += amount
    return totals


def _suits(
    placed: Placed, sent: Mapping[str, float], coverage: Mapping[str, Mapping[str, float]]
) -> Mapping[str, Mapping[str, float]]:
    """Worker -> task -> what its residents cover of it, and how much of it is sent there."""
    return {
        worker_id: {
            task: coverage.get(worker_id, {}).get(task, 0.0) + mine.get(task, 0.0) / amount
            for task, amount in sent.items()
            if amount
        }
        for worker_id, mine in placed.items()
    }


def _situation(
    tokens: Mapping[str, float],
    states: Sequence[WorkerState],
    per_token: Mapping[str, FloatGrid],
    suits: Mapping[str, Mapping[str, float]],
) -> Situation:
    tasks = tuple(sorted(tokens))
    sequences = {state.worker_id: float(max(1, state.num_sequences)) for state in states}
    workers = tuple(sorted(sequences))
    return Situation(
        workers=workers,
        tasks=tasks,
        loads=np.array([tokens[task] for task in tasks]),
        room=np.array([sequences[one] for one in workers]) / sum(sequences.values()),
        alike=overlap(per_token, tasks, UNKNOWN),
        suits=np.array([[suits[one].get(task, 0.0) for task in tasks] for one in workers]),
    )
