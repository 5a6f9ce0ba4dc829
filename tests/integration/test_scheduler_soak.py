"""Many requests through the real front door, queue, desk and pool, while workers die, hang, drain and are full and
clients leave: each ends in exactly one way, and nothing is left in any table.

Sockets alone are stood in for, and time is virtual. EMOE_SOAK_REQUESTS says how many a policy:
`EMOE_SOAK_REQUESTS=100000 pytest -s tests/integration/test_scheduler_soak.py -k fifo` is the whole."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator

import pytest
from scheduler_soak_clients import Outcome, ask, make_plan
from scheduler_soak_workers import NUM_SEQUENCES, Fleet
from virtual_time import VirtualTimeLoop

from emoe.core.schedule.cluster import Cluster
from emoe.core.schedule.decisions import ENDS, Decision, DecisionKind, DecisionLog
from emoe.core.schedule.desk import Desk
from emoe.core.schedule.policies import POLICIES, make_policy
from emoe.scheduler.dispatch import Dispatcher
from emoe.scheduler.follow import probe_workers
from emoe.scheduler.health import HealthPace, watch_health
from emoe.scheduler.lengths import LengthEstimator
from emoe.scheduler.service import SchedulerServicer
from emoe.scheduler.settings import SchedulerSettings
from emoe.scheduler.workers import WorkerPool

NUM_REQUESTS = int(os.environ.get("EMOE_SOAK_REQUESTS", "800"))
NUM_WORKERS = 6
MEAN_FATE_SECONDS = 2.0
REQUESTS_PER_SECOND = (2.0 * NUM_WORKERS * NUM_SEQUENCES, 20.0 * NUM_WORKERS * NUM_SEQUENCES)
"""Less than the workers can do, and more: the queue fills and empties."""
BURST_REQUESTS = 100
MAX_QUEUED = 60
PACE = HealthPace(interval_seconds=0.5, timeout_seconds=1.0, silence_seconds=10.0)


class FrontDoor:
    def __init__(self, policy: str, seed: int) -> None:
        self.rng = random.Random(seed)
        self.fleet = Fleet(self.rng, num_workers=NUM_WORKERS)
        self.cluster = Cluster()
        self.pool = WorkerPool(self.cluster, connect=self.fleet.connect)  # type: ignore[arg-type]
        self.decisions = DecisionLog(max_decisions=20 * NUM_REQUESTS)
        self.desk = Desk(
            policy=make_policy(policy),
            cluster=self.cluster,
            max_requests=MAX_QUEUED,
            max_bytes=1000 * MAX_QUEUED,
            decisions=self.decisions,
        )
        self.dispatcher = Dispatcher(desk=self.desk, pool=self.pool, clock=asyncio.get_running_loop().time)
        self.servicer = SchedulerServicer(
            SchedulerSettings(loader="loader:1", policy=policy),
            dispatcher=self.dispatcher,
            pool=self.pool,
            lengths=LengthEstimator(),
            decisions=self.decisions,
        )

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        background = [
            asyncio.create_task(work)
            for work in (
                self._follow_loader(),
                watch_health(self.pool, PACE),
                probe_workers(self.pool, interval_seconds=1.0, timeout_seconds=2.0),
                self.fleet.suffer(mean_seconds=MEAN_FATE_SECONDS),
            )
        ]
        try:
            yield
            assert not any(task.done() for task in background)
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await self.pool.aclose()

    async def _follow_loader(self) -> None:
        while True:
            await self.pool.update(self.fleet.reports())
            await asyncio.sleep(0.1)
            if self.rng.random() < 0.01:
                self.fleet.events["loader was lost"] += 1
                self.pool.lose_loader()
                await asyncio.sleep(self.rng.uniform(0.1, 5.0))

    async def take_all(self, num_requests: int) -> list[Outcome]:
        answers = []
        for index in range(num_requests):
            rate = REQUESTS_PER_SECOND[index // BURST_REQUESTS % len(REQUESTS_PER_SECOND)]
            await asyncio.sleep(self.rng.expovariate(rate))
            answers.append(asyncio.create_task(ask(self.servicer, make_plan(index, self.rng))))
        return await asyncio.gather(*answers)


@pytest.mark.timeout(3600 if NUM_REQUESTS > 5_000 else 120)
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_request_ends_in_exactly_one_way_and_nothing_is_left(policy: str) -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(soak(policy, NUM_REQUESTS))


async def soak(policy: str, num_requests: int) -> None:
    began_seconds = time.perf_counter()
    door = FrontDoor(policy, seed=7)
    async with door.open():
        outcomes = await door.take_all(num_requests)
        check_ends(outcomes, door.decisions)
        check_tables(door)
    report(policy, outcomes, door, time.perf_counter() - began_seconds)


def check_ends(outcomes: list[Outcome], log: DecisionLog) -> None:
    """One end each in the record, and the one that the client saw."""
    assert log.num_forgotten == 0
    ends = collections.defaultdict[str, list[Decision]](list)
    for one in log.latest(len(log)):
        if one.kind in ENDS or one.kind is DecisionKind.REFUSED:
            ends[one.request_id].append(one)
    assert len(ends) == len(outcomes)
    for index, seen in enumerate(outcomes):
        (end,) = ends[str(index)]
        assert end.kind is DecisionKind.DONE or end.reason
        # A client that leaves as its request is refused or fails hears neither.
        assert seen in (Outcome(end.kind.value), Outcome.CANCELLED)
        assert end.kind is not DecisionKind.CANCELLED or seen is Outcome.CANCELLED
    assert set(outcomes) == set(Outcome), "the soak must meet every way to end"


def check_tables(door: FrontDoor) -> None:
    assert door.dispatcher.num_entries == 0
    assert (door.dispatcher.num_waiting, door.dispatcher.num_running) == (0, 0)
    assert door.desk.num_waiting_bytes == 0
    assert door.cluster.num_running == 0
    for worker in door.pool.workers():
        assert worker.num_in_flight == 0
        assert not worker.calls
        assert not worker.movable_calls
    assert not any(process.running for process in door.fleet.processes.values())


def report(policy: str, outcomes: list[Outcome], door: FrontDoor, wall_seconds: float) -> None:
    ways = collections.Counter(outcome.value for outcome in outcomes)
    requeued = sum(one.kind is DecisionKind.REQUEUED for one in door.decisions.latest(len(door.decisions)))
    print(
        f"\n{policy}: {len(outcomes)} requests in {wall_seconds:.1f} s: {dict(sorted(ways.items()))}, {requeued} queued"
        f" again, {door.pool.num_refusals} refused by workers; workers {door.fleet.events}"
    )
