"""The queue of resources: one place a key, one look at a time, pauses that grow."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from emoe_operator.cache import Key
from emoe_operator.workqueue import LONGEST_PAUSE_SECONDS, Done, WorkQueue, pause_seconds

A: Key = ("default", "a")
B: Key = ("default", "b")


@contextlib.asynccontextmanager
async def running(
    handle: Callable[[Key], Awaitable[Done]], *, num_workers: int = 2, debounce_seconds: float = 0.0
) -> AsyncIterator[WorkQueue]:
    queue = WorkQueue(handle, num_workers=num_workers, debounce_seconds=debounce_seconds)
    task = asyncio.create_task(queue.run())
    try:
        async with asyncio.timeout(10):
            yield queue
    finally:
        queue.close()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class Gate:
    """A handler that tells when it was entered and waits to be let go on."""

    def __init__(self) -> None:
        self.entered: asyncio.Queue[Key] = asyncio.Queue()
        self.let_go = asyncio.Semaphore(0)

    async def __call__(self, key: Key) -> Done:
        self.entered.put_nowait(key)
        await self.let_go.acquire()
        return Done()


async def test_many_events_of_one_key_become_one_look() -> None:
    gate = Gate()
    async with running(gate) as queue:
        for _ in range(100):
            queue.add(A)
        queue.add(B)
        assert {await gate.entered.get(), await gate.entered.get()} == {A, B}
        gate.let_go.release()
        gate.let_go.release()
        queue.add(B)
        assert await gate.entered.get() == B
        assert gate.entered.empty()


async def test_an_event_during_a_look_leads_to_another_after_it_and_never_beside_it() -> None:
    gate = Gate()
    async with running(gate) as queue:
        queue.add(A)
        await gate.entered.get()
        queue.add(A)
        queue.add(B)
        assert await gate.entered.get() == B
        assert gate.entered.empty()
        gate.let_go.release()
        gate.let_go.release()
        assert await gate.entered.get() == A


async def test_a_full_house_makes_others_wait() -> None:
    gate = Gate()
    async with running(gate, num_workers=1) as queue:
        queue.add(A)
        assert await gate.entered.get() == A
        queue.add(B)
        gate.let_go.release()
        assert await gate.entered.get() == B


async def test_an_earlier_look_takes_the_place_of_a_later_one() -> None:
    gate = Gate()
    async with running(gate) as queue:
        queue.add(A, after_seconds=3600)
        queue.add(A)
        queue.add(A, after_seconds=3600)
        assert await gate.entered.get() == A


async def test_a_bug_in_one_look_is_tried_again_and_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    looked: asyncio.Queue[Key] = asyncio.Queue()

    async def handle(key: Key) -> Done:
        looked.put_nowait(key)
        if key == A:
            raise ZeroDivisionError
        return Done()

    async with running(handle, num_workers=1) as queue:
        queue.add(A)
        assert await looked.get() == A
        queue.add(B)
        assert await looked.get() == B
        assert await looked.get() == A
    assert "looking after default/a failed" in caplog.text


def test_pauses_double_from_one_second_to_five_minutes() -> None:
    assert [pause_seconds(failures, random_ratio=0) for failures in (1, 2, 3)] == [1, 2, 4]
    assert pause_seconds(10_000, random_ratio=0) == LONGEST_PAUSE_SECONDS
    assert pause_seconds(3, random_ratio=1) == pytest.approx(3.2)
