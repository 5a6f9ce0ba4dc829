"""Which share of a task's routing a simulated worker's residents meet: a model, not a measurement.

A worker's plan follows what it was sent lately. A task that makes up the share s of its last prompts is covered by
`shared` + s * (`alone` - `shared`): `alone` is what residents chosen for one task cover of it, `shared` what residents
chosen for all tasks cover. Both can be measured (`emoe eval`); in between, the straight line is the model's.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping

MEMORY_PROMPTS = 64
PROMPTS_A_PLAN = 8
"""A new plan, and with it a new report, after so many prompts (eMoE's p)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidencyModel:
    shared: float
    alone: float


class FollowingResidency:
    """One worker's."""

    __slots__ = ("_latest", "_model", "_shares", "_since_plan", "coverage")

    def __init__(self, model: ResidencyModel, tasks: frozenset[str]) -> None:
        self._model = model
        self._latest: collections.deque[str] = collections.deque()
        self._shares: collections.Counter[str] = collections.Counter()
        self._since_plan = 0
        self.coverage: Mapping[str, float] = dict.fromkeys(tasks, model.shared)

    def sent(self, task: str) -> bool:
        """Whether there is a new plan: `coverage` has changed."""
        self._latest.append(task)
        self._shares[task] += 1
        if len(self._latest) > MEMORY_PROMPTS:
            self._shares[self._latest.popleft()] -= 1
        self._since_plan += 1
        if self._since_plan < PROMPTS_A_PLAN:
            return False
        self._since_plan = 0
        gain = (self._model.alone - self._model.shared) / len(self._latest)
        self.coverage = {name: self._model.shared + gain * self._shares[name] for name in self.coverage}
        return True
