"""When to ask the predictor, when to plan anew for a worker, and the two loops that do so.

The decisions are functions of data; the loops only wait, ask and hand over. A worker has one plan in flight at most:
the next comes when it has applied the last, or has had time enough.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
from collections.abc import Awaitable, Callable, Mapping

import numpy as np

from emoe.core.experts import ExpertGrid, FloatGrid
from emoe.core.planning import ResidencyPlanner
from emoe.core.refresh import (
    DEFAULT_REFRESH_INTERVAL_PROMPTS,
    favour_residents,
    kept_ratio,
    next_interval_prompts,
)
from emoe.core.tasks import BUILTIN_TASKS, UNKNOWN
from emoe.loader.coverage import Coverage
from emoe.loader.following import Following, WorkerMix
from emoe.loader.forecast import Forecast
from emoe.loader.news import News
from emoe.loader.task_mix import TaskMix
from emoe.loader.worker_demand import demand_of, margin_of
from emoe.loader.workers import Basis, Member, Plan, Workers, WorkerState

Ask = Callable[[frozenset[str]], Awaitable[Mapping[str, FloatGrid] | None]]
"""Tasks -> the demand of one token of each; None when the predictor does not answer."""

MAX_TASKS_ASKED = 64

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """`refresh_interval_prompts` is eMoE's p; with `adapts`, the one to begin with."""

    refresh_interval_prompts: int = DEFAULT_REFRESH_INTERVAL_PROMPTS
    adapts: bool = False
    ask_again_seconds: float = 5.0
    """Between two questions while the predictor does not answer."""
    apply_deadline_seconds: float = 30.0
    """After which a worker that has not applied its plan gets the next all the same."""
    settle_seconds: float = 0.1
    """Between two rounds of planning, so that a burst of reports is planned for once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LastAsked:
    num_prompts: int
    at_seconds: float
    answered: bool


def should_ask(last: LastAsked | None, *, num_prompts: int, new_tasks: bool, now_seconds: float, pace: Pace) -> bool:
    """At once when never asked; then after every interval of prompts or for a task not foretold yet.

    The interval begins at one prompt and doubles up to its length: the first prompts teach the most.
    """
    if last is None:
        return True
    if not last.answered:
        return now_seconds - last.at_seconds >= pace.ask_again_seconds
    interval = min(pace.refresh_interval_prompts, max(1, last.num_prompts))
    return new_tasks or num_prompts - last.num_prompts >= interval


def is_whole_interval(last: LastAsked | None, *, num_prompts: int, pace: Pace) -> bool:
    """Whether the last answer stood for all of p: one asked for sooner would have little to say of drift."""
    return last is not None and last.answered and num_prompts - last.num_prompts >= pace.refresh_interval_prompts


def is_in_flight(member: Member, *, now_seconds: float, pace: Pace) -> bool:
    """Whether the worker is still busy with the plan that it was given."""
    if member.plan is None or member.state.applied_epoch >= member.plan.epoch:
        return False
    return now_seconds - member.planned_at_seconds < pace.apply_deadline_seconds


def build_plan(
    state: WorkerState, last: Plan | None, demand: FloatGrid, planner: ResidencyPlanner, grid: ExpertGrid
) -> Plan:
    """Epochs go on from what the worker has applied: it may have had plans from a loader before this one."""
    favoured = favour_residents(demand, state.resident, margin_ratio=margin_of(state))
    wanted = planner.plan(favoured, num_slots=state.num_slots, grid=grid)
    return Plan(epoch=max(last.epoch if last else 0, state.applied_epoch) + 1, wanted=wanted, demand=demand)


def is_worth_sending(member: Member, plan: Plan, basis: Basis) -> bool:
    """Whether the worker would learn something: other experts, or a demand foretold anew."""
    if member.plan is None or member.basis is None:
        return True
    foretold_anew = member.basis.forecast_version != basis.forecast_version
    return foretold_anew or not np.array_equal(plan.wanted, member.plan.wanted)


def tasks_to_ask(task_tokens: Mapping[str, float]) -> frozenset[str]:
    """The built-in tasks and, as far as the bound goes, those with the most tokens to come."""
    tasks = dict.fromkeys([UNKNOWN, *BUILTIN_TASKS, *sorted(task_tokens, key=lambda task: -task_tokens[task])])
    return frozenset(list(tasks)[:MAX_TASKS_ASKED])


class PlanningLoop:
    """`ask` is None where no predictor is: then demand is uniform and stays so. `news` wakes both loops."""

    def __init__(
        self,
        *,
        workers: Workers,
        mix: TaskMix,
        news: News,
        grid: ExpertGrid,
        planner: ResidencyPlanner,
        ask: Ask | None,
        pace: Pace,
        clock: Callable[[], float],
        coverage: Coverage | None = None,
    ) -> None:
        self._workers = workers
        self._mix = mix
        self._news = news
        self._grid = grid
        self._planner = planner
        self._ask = ask
        self._pace = pace
        self._clock = clock
        self._forecast = Forecast(grid)
        self._coverage = coverage or Coverage()
        self._coverage.foretell(self._forecast.per_token)
        self._following = Following()
        self._split_basis: tuple[object, ...] = ()
        self._parts: Mapping[str, WorkerMix] = {}
        self._last_asked: LastAsked | None = None
        self._first_asked = asyncio.Event()

    async def ask_forever(self) -> None:
        """Asks only while there is a worker to plan for."""
        if self._ask is None:
            self._first_asked.set()
            return
        while True:
            seen = self._news.count
            await self.ask_if_due()
            unanswered = self._last_asked is not None and not self._last_asked.answered
            await self._news.after(seen, timeout_seconds=self._pace.ask_again_seconds if unanswered else None)

    async def plan_forever(self) -> None:
        """From the first answer, or silence, of the predictor on: no plan is made to be replaced at once."""
        await self._first_asked.wait()
        while True:
            seen = self._news.count
            in_flight = await self.plan_once()
            await asyncio.sleep(self._pace.settle_seconds)
            await self._news.after(seen, timeout_seconds=self._pace.apply_deadline_seconds if in_flight else None)

    async def plan_once(self) -> bool:
        """A plan for each worker that is free for one and would learn from it. Whether any plan is in flight then."""
        now_seconds = self._clock()
        mixes = self._split_mix()
        for member in self._workers.members():
            own = mixes.get(member.state.worker_id)
            basis = self._basis_of(member, own)
            if member.basis == basis or is_in_flight(member, now_seconds=now_seconds, pace=self._pace):
                continue
            demand = demand_of(member.state, own or self._mix, self._forecast.demand)
            # A large model takes a tenth of a second: heartbeats and pulls go on meanwhile.
            plan = await asyncio.to_thread(build_plan, member.state, member.plan, demand, self._planner, self._grid)
            if is_worth_sending(member, plan, basis):
                member.offer(plan, now_seconds=now_seconds)
                _log.debug("worker %s gets plan %d", member.state.worker_id, plan.epoch)
            member.basis = basis
        return any(is_in_flight(member, now_seconds=now_seconds, pace=self._pace) for member in self._workers.members())

    def _split_mix(self) -> Mapping[str, WorkerMix]:
        """Each worker's part of the mix; none where there is nothing to tell workers apart."""
        states = self._workers.states()
        basis = (
            *(self._forecast.version, self._mix.version, self._mix.placed_version),
            *(state.worker_id for state in states),
        )
        if basis != self._split_basis:
            self._coverage.refresh(states)
            per_token, coverage = self._forecast.per_token, self._coverage.told
            self._parts = self._following.split(self._mix, states, per_token, coverage) or {}
            self._split_basis = basis
        return self._parts

    def _basis_of(self, member: Member, own: WorkerMix | None) -> Basis:
        running = member.state.running
        return Basis(
            forecast_version=self._forecast.version,
            mix_version=self._mix.version if own is None else 0,
            num_slots=member.state.num_slots,
            running_version=0 if running is None else running.version,
            following=() if own is None else own.rounded(),
        )

    def _is_due(self) -> bool:
        return should_ask(
            self._last_asked,
            num_prompts=self._mix.num_prompts,
            new_tasks=not tasks_to_ask(self._mix.task_tokens) <= self._forecast.tasks,
            now_seconds=self._clock(),
            pace=self._pace,
        )

    async def ask_if_due(self) -> None:
        if self._ask is None or not self._workers.members() or not self._is_due():
            return
        num_prompts, last = self._mix.num_prompts, self._last_asked
        per_token = await self._ask(tasks_to_ask(self._mix.task_tokens))
        answered = per_token is not None
        if self._last_asked is None or self._last_asked.answered != answered:
            _log.info("the predictor answers" if answered else "the predictor does not answer; the last demand stands")
        self._last_asked = LastAsked(num_prompts=num_prompts, at_seconds=self._clock(), answered=answered)
        if per_token is not None:
            before = self._forecast.demand(self._mix.task_tokens)
            self._forecast.update(per_token)
            self._tell_coverage()
            if self._pace.adapts and is_whole_interval(last, num_prompts=num_prompts, pace=self._pace):
                await self._adapt(before)
        self._first_asked.set()
        self._news.announce()

    def _tell_coverage(self) -> None:
        self._coverage.foretell(self._forecast.per_token)
        if self._coverage.refresh(self._workers.states()):
            self._workers.news.announce()

    async def _adapt(self, before: FloatGrid) -> None:
        """Judged for the worker with the fewest slots, where a wrong plan costs the most."""
        num_slots = min((member.state.num_slots for member in self._workers.members()), default=0)
        if not num_slots:
            return
        plan = functools.partial(self._planner.plan, num_slots=num_slots, grid=self._grid)
        kept = await asyncio.to_thread(kept_ratio, before, self._forecast.demand(self._mix.task_tokens), plan)
        interval = next_interval_prompts(self._pace.refresh_interval_prompts, kept)
        _log.debug(
            "the next prediction is after %d prompts, the last was after %d: of the demand foretold now, experts "
            "chosen from the one before cover %.3f of what the best do",
            *(interval, self._pace.refresh_interval_prompts, kept),
        )
        self._pace = dataclasses.replace(self._pace, refresh_interval_prompts=interval)
