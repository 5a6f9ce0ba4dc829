"""The supervisor over real child processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from cli_stubs import STUB_PARENT, accepts, stub_spec

from emoe.cli.restarts import RestartLimit
from emoe.cli.supervisor import ChildEvent, ChildState, SupervisionError, Supervisor, SupervisorLimits

WAIT_SECONDS = 20.0


class Events:
    """What the supervisor told, and a way to wait for the next of a kind."""

    def __init__(self) -> None:
        self.seen: list[ChildEvent] = []
        self._changed = asyncio.Event()

    def __call__(self, event: ChildEvent) -> None:
        self.seen.append(event)
        self._changed.set()

    def states(self, name: str) -> list[ChildState]:
        return [event.state for event in self.seen if event.name == name]

    async def until(self, done: Callable[[list[ChildEvent]], bool]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not done(self.seen):
                self._changed.clear()
                await self._changed.wait()


@contextlib.asynccontextmanager
async def supervising(**limits: float | RestartLimit) -> AsyncIterator[tuple[Supervisor, Events]]:
    events = Events()
    supervisor = Supervisor(probe=accepts, limits=SupervisorLimits(**limits), on_event=events)
    try:
        yield supervisor, events
    finally:
        await supervisor.stop()


def num_ready(name: str) -> Callable[[list[ChildEvent]], int]:
    return lambda seen: sum(event.name == name and event.state is ChildState.READY for event in seen)


async def test_children_become_ready_on_addresses_of_their_own(tmp_path: Path) -> None:
    async with supervising() as (supervisor, events):
        await supervisor.start(stub_spec(tmp_path, "one"), stub_spec(tmp_path, "two"))
        assert supervisor.announcement("one").address != supervisor.announcement("two").address
        assert events.states("one") == events.states("two") == [ChildState.STARTING, ChildState.READY]


async def test_children_end_in_reverse_order_of_their_start(tmp_path: Path) -> None:
    async with supervising() as (supervisor, events):
        await supervisor.start(stub_spec(tmp_path, "one"), stub_spec(tmp_path, "two"))
    assert [event.name for event in events.seen if event.state is ChildState.STOPPED] == ["two", "one"]
    assert [await child.wait() for child in supervisor.children] == [0, 0]


async def test_a_child_that_dies_at_start_is_told_with_its_last_log_lines(tmp_path: Path) -> None:
    async with supervising() as (supervisor, _):
        with pytest.raises(SupervisionError, match=r"(?s)broken failed: it ended with exit status 1.*no such model"):
            await supervisor.start(stub_spec(tmp_path, "broken", "--fault=dies"))


async def test_a_child_that_never_announces_itself_is_given_up(tmp_path: Path) -> None:
    async with supervising(announce_seconds=0.5) as (supervisor, _):
        with pytest.raises(SupervisionError, match=r"did not bind its ports within 0\.5 seconds"):
            await supervisor.start(stub_spec(tmp_path, "silent", "--fault=silent"))


async def test_a_child_that_never_becomes_ready_is_given_up(tmp_path: Path) -> None:
    async with supervising(ready_seconds=0.3) as (supervisor, _):
        with pytest.raises(SupervisionError, match=r"not ready within 0\.3 seconds"):
            await supervisor.start(stub_spec(tmp_path, "unready", "--fault=unready"))


async def test_a_killed_child_comes_back_on_the_same_addresses(tmp_path: Path) -> None:
    async with supervising() as (supervisor, events):
        await supervisor.start(stub_spec(tmp_path, "one"), stub_spec(tmp_path, "two"))
        before, pid = supervisor.announcement("one"), supervisor.children[0].pid
        watching = asyncio.create_task(supervisor.watch())
        os.kill(pid, signal.SIGKILL)
        await events.until(lambda seen: num_ready("one")(seen) == 2)
        watching.cancel()
        after = supervisor.announcement("one")
        assert (after.address, after.health_address) == (before.address, before.health_address)
        assert after.pid != pid
        assert events.states("two") == [ChildState.STARTING, ChildState.READY]


async def test_a_child_that_keeps_dying_is_given_up_after_its_restarts(tmp_path: Path) -> None:
    poison = tmp_path / "poison"
    async with supervising(restarts=RestartLimit(max_restarts=2)) as (supervisor, events):
        await supervisor.start(stub_spec(tmp_path, "one", f"--dies-if={poison}"))
        poison.touch()
        os.kill(supervisor.children[0].pid, signal.SIGKILL)
        with pytest.raises(SupervisionError, match="2 restarts within 60 seconds are spent, giving up"):
            async with asyncio.timeout(WAIT_SECONDS):
                await supervisor.watch()
        assert events.states("one").count(ChildState.RESTARTING) == 2


async def test_a_child_that_ignores_term_is_killed_when_its_drain_is_over(tmp_path: Path) -> None:
    async with supervising(drain_seconds=0.2) as (supervisor, _):
        await supervisor.start(stub_spec(tmp_path, "deaf", "--fault=ignores-term"))
    assert await supervisor.children[0].wait() == -signal.SIGKILL


@contextlib.asynccontextmanager
async def parent_process(folder: Path, fault: str = "") -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A supervising process, and a pidfd of the child that it has."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, str(STUB_PARENT), str(folder), fault, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            child_pid = int(await parent.stdout.readline())
        child = os.pidfd_open(child_pid)
        try:
            yield parent, child
        finally:
            os.close(child)
    finally:
        with contextlib.suppress(ProcessLookupError):
            parent.kill()
        await parent.wait()


def has_ended(pidfd: int) -> bool:
    """Whether the process ends within the time that a test may take."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(WAIT_SECONDS * 1000))


async def test_killing_the_parent_ends_the_child(tmp_path: Path) -> None:
    async with parent_process(tmp_path) as (parent, child):
        parent.kill()
        assert has_ended(child)
    assert "stub ends" not in (tmp_path / "stub.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
async def test_a_signal_to_the_parent_ends_the_child_in_order(tmp_path: Path, number: signal.Signals) -> None:
    async with parent_process(tmp_path) as (parent, child):
        parent.send_signal(number)
        assert await asyncio.wait_for(parent.wait(), WAIT_SECONDS) == 0
        assert has_ended(child)
    assert "stub ends" in (tmp_path / "stub.log").read_text()


async def test_a_second_signal_does_not_wait_for_the_drain(tmp_path: Path) -> None:
    async with parent_process(tmp_path, "ignores-term") as (parent, child):
        parent.send_signal(signal.SIGINT)
        while parent.returncode is None:
            parent.send_signal(signal.SIGINT)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(parent.wait(), 0.2)
        assert has_ended(child)
