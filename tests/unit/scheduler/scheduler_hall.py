"""A dispatcher with workers that only report, and the requests that hold a place in it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from emoe.core.schedule.cluster import Cluster
from emoe.core.schedule.decisions import DecisionFilter, DecisionKind, DecisionLog
from emoe.core.schedule.desk import Desk
from emoe.core.schedule.policies import make_policy
from emoe.core.schedule.request import QueuedRequest
from emoe.scheduler.client import ReportedWorker
from emoe.scheduler.dispatch import Dispatcher, Place
from emoe.scheduler.workers import WorkerPool

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


def request(arrived_seconds: float = 0.0, **fields: object) -> QueuedRequest:
    return QueuedRequest(
        **{
            "request_id": "one",
            "task": "qa",
            "arrived_seconds": arrived_seconds,
            "size_bytes": 10,
            "num_prompt_tokens": 5,
            "num_expected_tokens": 6,
            "max_tokens": 7,
            **fields,
        }
    )


class Hall:
    """A dispatcher, and the requests that hold a place in it."""

    def __init__(self, policy: str = "fifo", *, max_requests: int = 100, max_bytes: int = 1000) -> None:
        self.clock = Clock()
        self.cluster = Cluster()
        self.pool = WorkerPool(self.cluster)
        self.decisions = DecisionLog(max_decisions=100)
        self.desk = Desk(
            policy=make_policy(policy),
            cluster=self.cluster,
            max_requests=max_requests,
            max_bytes=max_bytes,
            decisions=self.decisions,
        )
        self.dispatcher = Dispatcher(desk=self.desk, pool=self.pool, clock=self.clock)
        self.started: list[QueuedRequest] = []
        self.places: list[Place] = []
        self._holders: dict[asyncio.Task[None], asyncio.Event] = {}

    async def arrive(self, one: QueuedRequest) -> asyncio.Task[None]:
        done = asyncio.Event()

        async def hold() -> None:
            with self.dispatcher.place(one) as place:
                self.places.append(place)
                await place.seated()
                self.started.append(one)
                await done.wait()

        task = asyncio.create_task(hold())
        self._holders[task] = done
        await settle()
        return task

    async def finish(self, task: asyncio.Task[None]) -> None:
        self._holders[task].set()
        await settle()

    def kinds(self, request_id: str = "one") -> list[DecisionKind]:
        """Oldest first."""
        return [one.kind for one in reversed(self.decisions.latest(100, DecisionFilter(request_id=request_id)))]

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
async def opened(**options) -> AsyncIterator[Hall]:
    hall = Hall(**options)
    try:
        yield hall
    finally:
        await hall.close()
