"""The workers that hold a subscription, as their heartbeats describe them, and the plan each was sent last.

The service feeds it, the planning loop reads it and offers plans, watchers copy it. A worker is here from its first
heartbeat to the end of its stream. Knows neither gRPC nor planners.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator

from emoe.core.errors import NotReadyError, QueueFullError
from emoe.core.experts import BoolGrid, FloatGrid
from emoe.core.schedule.costs import StepCosts
from emoe.loader.news import News

_RETRY_AFTER_SECONDS = 5.0
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerCounters:
    """Totals since the worker started."""

    num_expert_hits: int = 0
    num_expert_choices: int = 0
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    num_prompts: int = 0
    num_experts_loaded: int = 0
    num_bytes_loaded: int = 0
    stall_seconds: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Running:
    """What a worker foretells of its running requests. `demand` [L, E] in expected tokens; None: as it last was."""

    version: int
    num_requests: int
    demand: FloatGrid | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WorkerState:
    """One heartbeat. `num_slots` is what a plan may fill; `applied_epoch` the last plan applied in full."""

    worker_id: str
    address: str
    num_slots: int
    resident: BoolGrid
    free_sequences: int = 0
    max_tokens_per_sequence: int = 0
    num_running: int = 0
    num_waiting: int = 0
    ready: bool = False
    applied_epoch: int = 0
    miss_policy: str = "reroute"
    slot_bytes: int = 0
    counters: WorkerCounters = dataclasses.field(default_factory=WorkerCounters)
    running: Running | None = None
    """None of a worker that foretells nothing."""
    step_costs: StepCosts | None = None
    """As measured by itself, handed on to schedulers."""
    num_cost_steps: int = 0

    @property
    def num_sequences(self) -> int:
        """That it can run at once."""
        return self.free_sequences + self.num_running + self.num_waiting


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """The wanted residency of one worker, whole, and the demand [L, E] that it was made for."""

    epoch: int
    wanted: BoolGrid
    demand: FloatGrid


@dataclasses.dataclass(frozen=True, kw_only=True)
class Basis:
    """What a plan follows from, as versions: while it stays, so does the plan."""

    forecast_version: int
    mix_version: int
    num_slots: int
    running_version: int
    following: tuple[tuple[str, float], ...] = ()
    """The tasks that follow on this worker, in rounded shares, where it has a mix of its own."""


@dataclasses.dataclass(eq=False)
class Member:
    """A subscribed worker, the plan it was sent last, and what that was made from."""

    state: WorkerState
    plan: Plan | None = None
    planned_at_seconds: float = 0.0
    basis: Basis | None = None
    mail: News = dataclasses.field(default_factory=News)
    replaced: bool = False

    def offer(self, plan: Plan, *, now_seconds: float) -> None:
        """A plan not yet sent gives way to this one."""
        self.plan, self.planned_at_seconds = plan, now_seconds
        self.mail.announce()

    async def next_plan(self, after_epoch: int) -> Plan:
        """The newest plan beyond `after_epoch`. NotReadyError once the same worker subscribed anew."""
        while True:
            seen = self.mail.count
            if self.replaced:
                raise NotReadyError(f"worker {self.state.worker_id} has subscribed again; this stream is the older one")
            if self.plan is not None and self.plan.epoch > after_epoch:
                return self.plan
            await self.mail.after(seen)


class Workers:
    """`news` tells watchers of every registration, heartbeat and removal; `planning` is told as well."""

    def __init__(self, *, planning: News, max_workers: int = 256) -> None:
        self.news = News()
        self._planning = planning
        self._max_workers = max_workers
        self._members: dict[str, Member] = {}

    def members(self) -> tuple[Member, ...]:
        return tuple(self._members.values())

    def states(self) -> tuple[WorkerState, ...]:
        """In the order of registration."""
        return tuple(member.state for member in self._members.values())

    @contextlib.contextmanager
    def joined(self, state: WorkerState) -> Iterator[Member]:
        """The worker is listed inside. A second stream of the same worker takes the place of the first."""
        member = Member(state)
        older = self._members.pop(state.worker_id, None)
        if older is None and len(self._members) >= self._max_workers:
            raise QueueFullError(
                f"{self._max_workers} workers are subscribed already", retry_after_seconds=_RETRY_AFTER_SECONDS
            )
        if older is not None:
            older.replaced = True
            older.mail.announce()
        self._members[state.worker_id] = member
        _log.info("worker %s at %s joined with %d slots", state.worker_id, state.address, state.num_slots)
        self._announce()
        try:
            yield member
        finally:
            if not member.replaced:
                del self._members[state.worker_id]
                _log.info("worker %s left", state.worker_id)
                self._announce()

    def update(self, member: Member, state: WorkerState) -> None:
        if not member.replaced:
            member.state = _with_last_demand(state, member.state.running)
            self._announce()

    def _announce(self) -> None:
        self.news.announce()
        self._planning.announce()


def _with_last_demand(state: WorkerState, last: Running | None) -> WorkerState:
    """A heartbeat leaves out a demand that was told before."""
    if state.running is None or state.running.demand is not None or last is None:
        return state
    return dataclasses.replace(state, running=dataclasses.replace(state.running, demand=last.demand))
