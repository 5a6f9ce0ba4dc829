"""Who stays while requests run: the strategies that quality is judged for, and their baselines.

Each turns what may be known of the running requests into demand [L, E]; a planner makes residents of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

from emoe.core.experts import BoolGrid, ExpertGrid, FloatGrid
from emoe.core.own_routing import OwnRoutingRegression
from emoe.core.planning import ResidencyPlanner
from emoe.eval.profile import RoutingProfile, frequency
from emoe.eval.streams import ResidencyStrategy, Running


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known:
    """What strategies are made from."""

    profile: RoutingProfile
    grid: ExpertGrid
    num_slots: int
    planner: ResidencyPlanner
    seed: int = 0


class AllResident:
    def plan(self, running: Sequence[Running]) -> BoolGrid | None:  # noqa: ARG002 - they need not be known
        return None


class RandomResidents:
    """Drawn anew for each plan."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._random = np.random.default_rng(known.seed)

    def plan(self, running: Sequence[Running]) -> BoolGrid:  # noqa: ARG002 - they need not be known
        known = self._known
        demand = np.where(known.grid.all_experts(), self._random.random(known.grid.shape), 0.0)
        return known.planner.plan(demand, num_slots=known.num_slots, grid=known.grid)


class GlobalFrequency:
    """What all tasks route, each task alike: one plan for ever."""

    def __init__(self, known: Known) -> None:
        self._plan = _plan(known, known.profile.mean())

    def plan(self, running: Sequence[Running]) -> BoolGrid:  # noqa: ARG002 - they need not be known
        return self._plan


class TaskFrequency:
    """What the running requests' tasks route: eMoE's equation with a static frequency and every layer sensitive."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._plans: dict[Hashable, BoolGrid] = {}

    def plan(self, running: Sequence[Running]) -> BoolGrid:
        tasks = tuple(sorted(request.task for request in running))
        if tasks not in self._plans:
            demand = np.sum([self._known.profile.of(task) for task in tasks], axis=0)
            self._plans[tasks] = _plan(self._known, demand)
        return self._plans[tasks]


class OwnRouting:
    """emoe's: task frequency until a request's prompt has run, from then on what its own routing foretells."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._by_task = TaskFrequency(known)
        samples = known.profile.samples
        self._regression = OwnRoutingRegression()
        self._regression.fit(samples.spans, samples.futures, samples.num_tokens)

    def plan(self, running: Sequence[Running]) -> BoolGrid:
        begun = [request for request in running if request.phases]
        if not begun:
            return self._by_task.plan(running)
        spans = np.stack([np.stack([frequency(r.wanted), frequency(r.recent), frequency(r.recent)]) for r in begun])
        demand = self._regression.predict(spans).sum(axis=0, dtype=np.float64)
        demand += sum(self._known.profile.of(request.task) for request in running if not request.phases)
        return _plan(self._known, demand)


class Oracle:
    """Told what the coming tokens will route: the most that planning by frequency can reach."""

    def __init__(self, known: Known) -> None:
        self._known = known

    def plan(self, running: Sequence[Running]) -> BoolGrid:
        demand = np.sum([frequency(request.future[len(request.phases)]) for request in running], axis=0)
        return _plan(self._known, demand)


STRATEGIES: Mapping[str, Callable[[Known], ResidencyStrategy]] = {
    "random": RandomResidents,
    "global-frequency": GlobalFrequency,
    "task-frequency": TaskFrequency,
    "emoe": OwnRouting,
    "oracle": Oracle,
}
ALL_RESIDENT = "all-resident"
SHUFFLED = "-shuffled"
"""Behind a strategy's name: the same with task labels dealt out at random."""


def _plan(known: Known, demand: FloatGrid) -> BoolGrid:
    masked = np.where(known.grid.all_experts(), demand, 0.0).astype(np.float64)
    return known.planner.plan(masked, num_slots=known.num_slots, grid=known.grid)
