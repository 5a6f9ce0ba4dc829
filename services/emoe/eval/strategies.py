"""Who stays while requests run: the strategies that quality is judged for, and their baselines.

Each turns what may be known of the running requests into demand [L, E]; a planner makes residents of it. A strategy's
name may be followed by -calibrated (the model makes up for absent experts, which costs slots) and by -shuffled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Self

import numpy as np

from emoe.core.experts import BoolGrid, ExpertGrid, FloatGrid
from emoe.core.planning import ResidencyPlanner
from emoe.eval.memory import PromptMemory
from emoe.eval.profile import RoutingProfile, frequency
from emoe.eval.recording import spans_of
from emoe.eval.retrieving import ByEmbedding, ByFirstGate, ByTrajectory
from emoe.eval.streams import ResidencyStrategy, Running

TASK_SHARE = 0.3
"""Of a running request's demand, beside what its own routing foretells. Tried on the shipped model: 0, 0.3, 0.5."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """What strategies are made from. `memory` is there where a strategy was asked for that needs it."""

    profile: RoutingProfile
    memory: PromptMemory | None
    grid: ExpertGrid
    num_slots: int
    planner: ResidencyPlanner
    seed: int = 0

    def plan(self, demand: FloatGrid) -> BoolGrid:
        masked = np.where(self.grid.all_experts(), demand, 0.0).astype(np.float64)
        return self.planner.plan(masked, num_slots=self.num_slots, grid=self.grid)


class AllResident:
    def plan(self, running: Sequence[Running]) -> BoolGrid | None:  # noqa: ARG002 - they need not be known
        return None


class RandomResidents:
    """Drawn anew for each plan."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._random = np.random.default_rng(known.seed)

    def plan(self, running: Sequence[Running]) -> BoolGrid:  # noqa: ARG002 - they need not be known
        return self._known.plan(self._random.random(self._known.grid.shape))


class GlobalFrequency:
    """What all tasks route, each task alike: one plan for ever."""

    def __init__(self, known: Known) -> None:
        self._plan = known.plan(known.profile.mean())

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
            self._plans[tasks] = self._known.plan(
                np.sum([self._known.profile.of_requests(task) for task in tasks], axis=0)
            )
        return self._plans[tasks]


class OwnRouting:
    """emoe's: what its task's requests route until a request's prompt has run, then what its own routing foretells.

    The task keeps TASK_SHARE of it: a plan that follows the foretold alone covers more of the coming tokens and yet
    answers worse, for it gives up the experts that the prompt ran with.
    """

    def __init__(self, known: Known) -> None:
        self._known = known

    def plan(self, running: Sequence[Running]) -> BoolGrid:
        begun = [request for request in running if request.phases]
        demand = np.zeros(self._known.grid.shape)
        for request in running:
            demand += (TASK_SHARE if request.phases else 1.0) * self._known.profile.of_requests(request.task)
        if begun:
            demand += (1 - TASK_SHARE) * self._foretell(begun).sum(axis=0, dtype=np.float64)
        return self._known.plan(demand)

    def _foretell(self, begun: Sequence[Running]) -> FloatGrid:
        """[N, L, E]. Of a profile that has learnt nothing of it: each request's own routing so far."""
        regression = self._known.profile.own_routing
        if regression is None:
            return np.stack([frequency(one.wanted) for one in begun]).astype(np.float64)
        spans = np.stack([spans_of(np.concatenate(one.ids), self._known.grid) for one in begun])
        return regression.predict(spans).astype(np.float64)


class Retrieving:
    """What the training prompts most like each request went on to route."""

    def __init__(
        self, known: Known, search: Callable[[PromptMemory], ByEmbedding | ByFirstGate | ByTrajectory]
    ) -> None:
        assert known.memory is not None, "strategies with needs_memory are given one"
        self._known = known
        self._search = search(known.memory)

    def plan(self, running: Sequence[Running]) -> BoolGrid:
        return self._known.plan(self._search.predict(running).sum(axis=0, dtype=np.float64))


class Oracle:
    """Told what the coming tokens will route: about the most that planning by frequency can reach.

    Requests that share residents weigh as the square root of the tokens that come, a prompt as one: of the weights
    tried, from all alike to as many as tokens, with these the answers of all tasks together lose least.
    """

    def __init__(self, known: Known) -> None:
        self._known = known

    def plan(self, running: Sequence[Running]) -> BoolGrid:
        return self._known.plan(np.sum([self._demand(request) for request in running], axis=0))

    def _demand(self, request: Running) -> FloatGrid:
        coming = request.future[len(request.phases)]
        num_tokens = coming.sum(axis=1).max() / self._known.grid.rule.top_k
        weight = np.sqrt(num_tokens) if request.phases else 1.0
        return weight * frequency(coming).astype(np.float64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    build: Callable[[Known], ResidencyStrategy]
    reads_tasks: bool = False
    needs_memory: bool = False


STRATEGIES: Mapping[str, Kind] = {
    "random": Kind(build=RandomResidents),
    "global-frequency": Kind(build=GlobalFrequency),
    "task-frequency": Kind(build=TaskFrequency, reads_tasks=True),
    "retrieval-embedding": Kind(build=lambda known: Retrieving(known, ByEmbedding), needs_memory=True),
    "retrieval-first-gate": Kind(build=lambda known: Retrieving(known, ByFirstGate), needs_memory=True),
    "retrieval-trajectory": Kind(build=lambda known: Retrieving(known, ByTrajectory), needs_memory=True),
    "emoe": Kind(build=OwnRouting, reads_tasks=True),
    "oracle": Kind(build=Oracle),
}
ALL_RESIDENT = "all-resident"
RANDOM, GLOBAL, ORACLE = "random", "global-frequency", "oracle"
BASELINES = (RANDOM, GLOBAL, "task-frequency", ORACLE)
"""In every run, whatever is asked for."""
CALIBRATED, SHUFFLED = "-calibrated", "-shuffled"


@dataclasses.dataclass(frozen=True)
class Variant:
    """A strategy as it is run. Shuffled: with the task labels dealt out at random."""

    base: str
    calibrated: bool = False
    shuffled: bool = False

    @classmethod
    def parse(cls, name: str) -> Self:
        """ValueError for a strategy that there is not."""
        plain = name.removesuffix(SHUFFLED)
        base = plain.removesuffix(CALIBRATED)
        if base not in STRATEGIES:
            raise ValueError(f"{name!r} is no strategy; there are {', '.join(STRATEGIES)}, each also with {CALIBRATED}")
        return cls(base, calibrated=plain != base, shuffled=name != plain)

    @property
    def name(self) -> str:
        return self.base + CALIBRATED * self.calibrated + SHUFFLED * self.shuffled

    @property
    def kind(self) -> Kind:
        return STRATEGIES[self.base]


def choose_variants(asked: Sequence[str], *, has_calibration: bool) -> tuple[Variant, ...]:
    """Those asked for (all, where none is), the baselines, and after each that reads task labels the same shuffled.

    Calibrated ones only where there is a calibration.
    """
    named = [Variant.parse(name) for name in asked or default_names(has_calibration=has_calibration)]
    wanted = {*named, *(Variant(name) for name in BASELINES)}
    wanted |= {dataclasses.replace(one, shuffled=True) for one in wanted if one.kind.reads_tasks}
    order = list(STRATEGIES)
    return tuple(sorted(wanted, key=lambda one: (one.calibrated, order.index(one.base), one.shuffled)))


def default_names(*, has_calibration: bool) -> tuple[str, ...]:
    calibrated = ("task-frequency", "emoe", "oracle") if has_calibration else ()
    return (*STRATEGIES, *(name + CALIBRATED for name in calibrated))
