"""Keeps a set of child processes alive: starts them, waits for readiness, brings back the dead, ends them in order.

It knows processes, addresses and a readiness probe; not what the services do, nor how progress is shown. A child that
fails its first start ends the whole; one that dies later comes back on its old addresses, within `RestartLimit`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from emoe.cli.announcement import Announcement
from emoe.cli.child import Child, ChildSpec
from emoe.cli.failures import CommandError
from emoe.cli.restarts import RestartBudget, RestartLimit

PROBE_INTERVAL_SECONDS = 0.1


class SupervisionError(CommandError):
    """A child could not be started, or died too often; the message ends with its last log lines."""


class ChildState(enum.Enum):
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPED = "stopped"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChildEvent:
    name: str
    state: ChildState
    detail: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisorLimits:
    """`drain_seconds` must exceed the children's own, or they are killed while they drain."""

    announce_seconds: float = 60.0
    ready_seconds: float = 300.0
    drain_seconds: float = 15.0
    restarts: RestartLimit = dataclasses.field(default_factory=RestartLimit)


Probe = Callable[[str], Awaitable[bool]]
"""Whether the service at this health address says that it can do its job. Returns soon, never raises for a dead one."""


class Supervisor:
    """Use: `start` children in the order they need each other, `watch` until cancelled, `stop` whatever happened."""

    def __init__(
        self,
        *,
        probe: Probe,
        limits: SupervisorLimits | None = None,
        on_event: Callable[[ChildEvent], None] = lambda _event: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probe = probe
        self._limits = limits or SupervisorLimits()
        self._on_event = on_event
        self._clock = clock
        self._children: dict[str, Child] = {}

    @property
    def children(self) -> tuple[Child, ...]:
        """In the order of their start."""
        return tuple(self._children.values())

    async def start(self, *specs: ChildSpec) -> None:
        """Starts children side by side and returns once all are ready; SupervisionError for the first that fails."""
        children = [Child(spec) for spec in specs]
        self._children.update((child.name, child) for child in children)
        await _all_of(self._start(child) for child in children)

    def announcement(self, name: str) -> Announcement:
        """The addresses of a child that has bound its ports; they stay the same over its restarts."""
        announcement = self._children[name].announcement
        assert announcement is not None, f"{name} has not announced itself"
        return announcement

    async def watch(self) -> None:
        """Brings back what dies. Returns never; SupervisionError when a child's restarts are spent."""
        await _all_of(self._keep(child) for child in self.children)

    async def stop(self) -> None:
        """Ends the children, last started first, so that each drains while those it needs still run.

        Cancelled while it waits, it kills them all at once.
        """
        try:
            for child in reversed(self._children.values()):
                if child.is_running:
                    await child.end(drain_seconds=self._limits.drain_seconds)
                self._tell(child, ChildState.STOPPED)
        except asyncio.CancelledError:
            await self._kill()
            raise

    async def _kill(self) -> None:
        for child in self.children:
            if child.is_running:
                await child.kill()

    async def _start(self, child: Child) -> None:
        self._tell(child, ChildState.STARTING)
        await self._run(child)

    async def _keep(self, child: Child) -> None:
        budget = RestartBudget(self._limits.restarts)
        while True:
            reason = f"it ended with {describe_exit(await child.wait())}"
            while not await self._revived(child, budget, reason):
                reason = "it did not become ready again"

    async def _revived(self, child: Child, budget: RestartBudget, reason: str) -> bool:
        """One restart, after its pause; False if the new process failed too."""
        delay = budget.next_delay_seconds(self._clock())
        if delay is None:
            limit = self._limits.restarts
            raise self._failure(
                child,
                f"{reason}; {limit.max_restarts} restarts within {limit.window_seconds:g} seconds are spent, giving up",
            )
        self._tell(child, ChildState.RESTARTING, reason)
        await asyncio.sleep(delay)
        try:
            await self._run(child)
        except SupervisionError:
            await child.kill()
            return False
        return True

    async def _run(self, child: Child) -> None:
        """One process of a child, from spawn to readiness."""
        await child.spawn()
        await self._announced(child)
        await self._ready(child)

    async def _announced(self, child: Child) -> None:
        seconds = self._limits.announce_seconds
        try:
            async with asyncio.timeout(seconds):
                announcement = await child.wait_announced()
        except TimeoutError:
            raise self._failure(child, f"it did not bind its ports within {seconds:g} seconds") from None
        except ValueError as error:
            raise self._failure(child, str(error)) from error
        if announcement is None:
            raise self._failure(child, f"it ended with {describe_exit(await child.wait())} before it was up")

    async def _ready(self, child: Child) -> None:
        health_address = self.announcement(child.name).health_address
        seconds = self._limits.ready_seconds
        try:
            async with asyncio.timeout(seconds):
                while not await self._probe(health_address):
                    if not child.is_running:
                        status = describe_exit(await child.wait())
                        raise self._failure(child, f"it ended with {status} before it was ready")
                    await asyncio.sleep(PROBE_INTERVAL_SECONDS)
        except TimeoutError:
            raise self._failure(child, f"it was not ready within {seconds:g} seconds") from None
        self._tell(child, ChildState.READY)

    def _failure(self, child: Child, what: str) -> SupervisionError:
        tail = child.tail() or "(nothing)"
        return SupervisionError(f"{child.name} failed: {what}. Its last log lines ({child.spec.log_path}):\n{tail}")

    def _tell(self, child: Child, state: ChildState, detail: str = "") -> None:
        self._on_event(ChildEvent(name=child.name, state=state, detail=detail))


async def _all_of(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Runs them side by side; the first failure ends the others and is raised as itself, not as a group."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in coroutines:
                group.create_task(coroutine)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


def describe_exit(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"
