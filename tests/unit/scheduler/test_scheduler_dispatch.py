"""Queue and admission without a network: bounds, order, and never more on a worker than it holds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emoe.core.admission import ADMISSION_POLICIES
from emoe.core.errors import QueueFullError
from emoe.scheduler.client import ReportedWorker
from emoe.scheduler.dispatch import Dispatcher, Ticket
from emoe.scheduler.workers import Worker, WorkerPool

NUM_SEQUENCES = 3


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def report(
    num_running: int = 0, *, worker_id: str = "w", max_tokens: int = 100, ready: bool = True, num_tokens: int = 0
) -> ReportedWorker:
    return ReportedWorker(
        worker_id=worker_id,
        address="127.0.0.1:1",
        ready=ready,
        free_sequences=max(0, NUM_SEQUENCES - num_running),
        num_sequences=num_running,
        max_tokens_per_sequence=max_tokens,
        num_tokens=num_tokens,
    )


def ticket(arrived_seconds: float = 0.0, **fields: object) -> Ticket:
    return Ticket(
        **{
            "task": "qa",
            "arrived_seconds": arrived_seconds,
            "ttft_seconds": None,
            "size_bytes": 10,
            "num_prompt_tokens": 5,
            "num_expected_tokens": 6,
            "max_tokens": 7,
            **fields,
        }
    )


class Desk:
    """A dispatcher, and the requests that hold a place in it."""

    def __init__(self, policy: str = "fifo", *, max_requests: int = 100, max_bytes: int = 1000) -> None:
        self.clock = Clock()
        self.pool = WorkerPool()
        self.dispatcher = Dispatcher(
            policy=ADMISSION_POLICIES[policy],
            pool=self.pool,
            max_requests=max_requests,
            max_bytes=max_bytes,
            clock=self.clock,
        )
        self.started: list[Ticket] = []
        self._holders: dict[asyncio.Task[None], asyncio.Event] = {}

    async def arrive(self, one: Ticket) -> asyncio.Task[None]:
        done = asyncio.Event()

        async def hold() -> None:
            async with self.dispatcher.place(one):
                self.started.append(one)
                await done.wait()

        task = asyncio.create_task(hold())
        self._holders[task] = done
        await settle()
        return task

    async def finish(self, task: asyncio.Task[None]) -> None:
        self._holders[task].set()
        await settle()

    async def close(self) -> None:
        for task in self._holders:
            task.cancel()
        await asyncio.gather(*self._holders, return_exceptions=True)
        await self.pool.aclose()


async def settle() -> None:
    """Let every task run as far as it can: none of them waits for anything outside."""
    for _ in range(10):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def opened(**options) -> AsyncIterator[Desk]:
    desk = Desk(**options)
    try:
        yield desk
    finally:
        await desk.close()


async def test_request_that_finds_room_starts_at_once() -> None:
    async with opened() as desk:
        await desk.pool.update([report()])
        await desk.arrive(ticket())
        assert (desk.dispatcher.num_running, desk.dispatcher.num_waiting) == (1, 0)


async def test_worker_that_is_not_ready_gets_nothing() -> None:
    async with opened() as desk:
        await desk.pool.update([report(ready=False)])
        await desk.arrive(ticket())
        assert desk.dispatcher.num_waiting == 1
        await desk.pool.update([report(ready=True)])
        await settle()
        assert desk.dispatcher.num_running == 1


async def test_end_of_one_request_starts_the_next() -> None:
    async with opened() as desk:
        await desk.pool.update([report(num_running=NUM_SEQUENCES - 1)])
        first = await desk.arrive(ticket(1.0))
        await desk.arrive(ticket(2.0))
        assert desk.dispatcher.num_waiting == 1
        await desk.finish(first)
        assert [one.arrived_seconds for one in desk.started] == [1.0, 2.0]


async def test_soonest_due_first_token_runs_first_under_edf() -> None:
    async with opened(policy="edf") as desk:
        await desk.arrive(ticket(1.0))
        await desk.arrive(ticket(2.0, ttft_seconds=9.0))
        await desk.arrive(ticket(3.0, ttft_seconds=0.5))
        await desk.pool.update([report()])
        await settle()
        assert [one.arrived_seconds for one in desk.started] == [3.0, 2.0, 1.0]


async def test_estimate_larger_than_any_worker_still_starts() -> None:
    async with opened() as desk:
        await desk.pool.update([report(max_tokens=50)])
        await desk.arrive(ticket(num_prompt_tokens=10**6))
        assert desk.dispatcher.num_running == 1


async def test_retry_delay_follows_the_rate_of_admission() -> None:
    async with opened(max_requests=4) as desk:
        await desk.pool.update([report()])
        for index in range(NUM_SEQUENCES):
            desk.clock.seconds = 2.0 * index
            await desk.arrive(ticket())
        desk.clock.seconds = 6.0
        for _ in range(4):
            await desk.arrive(ticket())

        with pytest.raises(QueueFullError) as full:
            await (await desk.arrive(ticket()))

        assert full.value.retry_after_seconds == pytest.approx(4 * 6.0 / 3)


async def test_request_larger_than_the_byte_bound_may_still_start_when_nothing_waits() -> None:
    async with opened(max_bytes=5) as desk:
        await desk.pool.update([report()])
        await desk.arrive(ticket(size_bytes=10))
        assert desk.dispatcher.num_running == 1


async def test_loads_count_each_task_apart() -> None:
    async with opened() as desk:
        await desk.pool.update([report(num_running=NUM_SEQUENCES - 1)])
        for task in ("qa", "code", "code"):
            await desk.arrive(ticket(task=task))

        code, qa = desk.dispatcher.loads()

        assert (qa.task, qa.num_running, qa.num_waiting) == ("qa", 1, 0)
        assert (code.task, code.num_running, code.num_waiting) == ("code", 0, 2)
        assert (code.num_prompt_tokens, code.num_expected_tokens, code.num_waiting_tokens) == (10, 12, 22)
        assert (qa.num_prompt_tokens, qa.num_expected_tokens, qa.num_waiting_tokens) == (5, 6, 0)


events = st.lists(st.sampled_from(["arrive", "finish", "leave", "snapshot", "deliver"]), max_size=60)


@settings(max_examples=60, deadline=None)
@given(events)
def test_worker_never_holds_more_than_it_can_however_late_its_reports_come(happenings: list[str]) -> None:
    asyncio.run(_live_through(happenings))


async def _live_through(happenings: list[str]) -> None:
    """Reports are snapshots of the true number of running requests, delivered late and in order."""
    async with opened() as desk:
        await desk.pool.update([report()])
        tasks: list[asyncio.Task[None]] = []
        snapshots: list[ReportedWorker] = []
        for step, happening in enumerate(happenings, start=1):
            match happening:
                case "arrive":
                    tasks.append(await desk.arrive(ticket(float(len(tasks)))))
                case "finish" if tasks:
                    await desk.finish(tasks.pop(0))
                case "leave" if tasks:
                    tasks.pop().cancel()
                    await settle()
                case "snapshot":
                    snapshots.append(report(num_running=desk.dispatcher.num_running, num_tokens=step))
                case "deliver" if snapshots:
                    await desk.pool.update([snapshots.pop(0)])
                    await settle()
            assert desk.dispatcher.num_running <= NUM_SEQUENCES
            assert desk.dispatcher.num_running + desk.dispatcher.num_waiting == sum(not task.done() for task in tasks)
        await desk.pool.update([report(num_running=desk.dispatcher.num_running, num_tokens=len(happenings) + 1)])
        await settle()
        assert desk.dispatcher.num_running == min(NUM_SEQUENCES, len(tasks))


async def test_other_schedulers_requests_count_against_a_worker() -> None:
    worker = Worker(report(num_running=2))
    try:
        assert worker.free_sequences == 1
        worker.num_in_flight = 1
        assert worker.free_sequences == 0
        worker.observe(report(num_running=3))
        assert worker.free_sequences == 0
        worker.num_in_flight = 0
        assert worker.free_sequences == 1
    finally:
        await worker.client.close()


async def test_a_report_that_is_listed_again_is_not_sent_on_twice() -> None:
    """The loader lists all workers whenever one of them has news."""
    worker = Worker(report(num_running=1, num_tokens=5))
    try:
        assert worker.free_sequences == 2
        worker.num_in_flight = 2
        worker.observe(report(num_running=1, num_tokens=5))
        assert worker.free_sequences == 0
        worker.observe(report(num_running=1, num_tokens=9))
        assert worker.free_sequences == 1, "another scheduler's request ended meanwhile"
    finally:
        await worker.client.close()


async def test_a_worker_that_refused_gets_nothing_until_it_reports_anew() -> None:
    pool = WorkerPool()
    await pool.update([report()])
    (worker,) = pool.workers()
    try:
        pool.refused(worker, retry_seconds=60)
        await pool.update([report()])
        assert pool.capacities() == [], "the same report again says nothing of the refusal"
        await pool.update([report(num_running=2, num_tokens=9)])
        assert [capacity.free_sequences for capacity in pool.capacities()] == [1]
        assert pool.num_refusals == 1
    finally:
        await pool.aclose()


async def test_a_worker_that_refused_is_tried_again_after_its_delay() -> None:
    pool = WorkerPool()
    await pool.update([report()])
    (worker,) = pool.workers()
    reopened = asyncio.Event()
    try:
        pool.refused(worker, retry_seconds=0.01)
        assert pool.capacities() == []
        pool.on_change = reopened.set
        async with asyncio.timeout(5):
            await reopened.wait()
        assert len(pool.capacities()) == 1
    finally:
        await pool.aclose()


async def test_a_request_that_is_queued_again_is_counted_once() -> None:
    async with opened() as desk:
        await desk.pool.update([report()])
        for again in (False, True):
            async with desk.dispatcher.place(ticket(), again=again):
                pass
        assert desk.dispatcher.num_prompts == 1
