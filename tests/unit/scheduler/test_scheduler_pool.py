"""The workers that requests may go to: never more on one than it holds, however late or old its reports are."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_hall import NUM_SEQUENCES, opened, report, request, settle

from emoe.core.schedule.cluster import Cluster
from emoe.core.schedule.costs import StepCosts
from emoe.scheduler.client import ReportedWorker
from emoe.scheduler.costs import CostMemory
from emoe.scheduler.worker import Worker
from emoe.scheduler.workers import WorkerPool

events = st.lists(st.sampled_from(["arrive", "finish", "leave", "snapshot", "deliver"]), max_size=60)


@settings(max_examples=60, deadline=None)
@given(events)
def test_worker_never_holds_more_than_it_can_however_late_its_reports_come(happenings: list[str]) -> None:
    asyncio.run(_live_through(happenings))


async def _live_through(happenings: list[str]) -> None:
    """Reports are snapshots of the true number of running requests, delivered late and in order."""
    async with opened() as hall:
        await hall.pool.update([report()])
        tasks: list[asyncio.Task[None]] = []
        snapshots: list[ReportedWorker] = []
        for step, happening in enumerate(happenings, start=1):
            match happening:
                case "arrive":
                    tasks.append(await hall.arrive(request(float(len(tasks)))))
                case "finish" if tasks:
                    await hall.finish(tasks.pop(0))
                case "leave" if tasks:
                    tasks.pop().cancel()
                    await settle()
                case "snapshot":
                    snapshots.append(report(num_running=hall.dispatcher.num_running, num_tokens=step))
                case "deliver" if snapshots:
                    await hall.pool.update([snapshots.pop(0)])
                    await settle()
            assert hall.dispatcher.num_running <= NUM_SEQUENCES
            assert hall.dispatcher.num_running + hall.dispatcher.num_waiting == sum(not task.done() for task in tasks)
        await hall.pool.update([report(num_running=hall.dispatcher.num_running, num_tokens=len(happenings) + 1)])
        await settle()
        assert hall.dispatcher.num_running == min(NUM_SEQUENCES, len(tasks))


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
    cluster = Cluster()
    pool = WorkerPool(cluster)
    await pool.update([report()])
    (worker,) = pool.workers()
    try:
        pool.refused(worker, retry_seconds=60)
        await pool.update([report()])
        assert cluster.num_free_sequences == 0, "the same report again says nothing of the refusal"
        await pool.update([report(num_running=2, num_tokens=9)])
        assert cluster.num_free_sequences == 1
        assert pool.num_refusals == 1
    finally:
        await pool.aclose()


async def test_a_worker_that_refused_is_tried_again_after_its_delay() -> None:
    cluster = Cluster()
    pool = WorkerPool(cluster)
    await pool.update([report()])
    (worker,) = pool.workers()
    reopened = asyncio.Event()
    try:
        pool.refused(worker, retry_seconds=0.01)
        assert cluster.num_free_sequences == 0
        pool.on_change = reopened.set
        async with asyncio.timeout(5):
            await reopened.wait()
        assert cluster.num_free_sequences == NUM_SEQUENCES
    finally:
        await pool.aclose()


async def test_a_worker_is_in_the_cluster_only_while_it_can_be_used() -> None:
    async with opened() as hall:
        await hall.pool.update([report(), report(worker_id="v")])
        (worker, _) = hall.pool.workers()
        assert hall.pool.num_usable == 2
        hall.pool.hear(worker, is_serving=False)
        assert hall.cluster.worker_ids == ("v at 127.0.0.1:1",)
        hall.pool.hear(worker, is_serving=True)
        hall.pool.suspect(worker)
        assert hall.cluster.worker_ids == ("v at 127.0.0.1:1",)
        await hall.pool.update([])
        assert hall.pool.num_usable == 0


async def test_what_the_loader_says_of_coverage_outlives_a_probe_and_is_no_news_of_free_sequences() -> None:
    async with opened() as hall:
        await hall.pool.update([dataclasses.replace(report(num_running=1), coverage={"qa": 0.25})])
        (worker,) = hall.pool.workers()
        for _ in range(2):
            await hall.arrive(request())
        await hall.pool.update([dataclasses.replace(report(num_running=1), coverage={"qa": 0.75})])
        worker.observe(report(num_running=1))

        assert list(hall.cluster.coverage("qa")) == [0.75]
        assert hall.cluster.num_free_sequences == 0


async def test_costs_are_guessed_from_what_was_measured_before() -> None:
    measured = StepCosts(base_seconds=1, prompt_token_seconds=2, sequence_seconds=3)
    costs, cluster = CostMemory(), Cluster()
    async with contextlib.aclosing(WorkerPool(cluster, costs)) as pool:
        await pool.update([dataclasses.replace(report(), costs=measured)])
        await pool.update([report(num_tokens=1)])
        assert list(cluster.step_seconds) == [1]


async def test_only_the_largest_worker_gets_what_seems_too_long_for_all() -> None:
    async with opened() as hall:
        await hall.pool.update([report(worker_id="small", max_tokens=50), report(worker_id="large")])
        await hall.arrive(request(num_prompt_tokens=1000))
        await hall.arrive(request(num_prompt_tokens=60))
        (large,) = {place.seat.worker.worker_id for place in hall.places}
        assert large == "large"
        await hall.pool.update([report(worker_id="small", max_tokens=50)])
        await hall.arrive(request(num_prompt_tokens=60))
        assert hall.places[-1].seat.worker.worker_id == "small"


async def test_a_request_that_a_full_worker_refused_waits_until_the_worker_has_news() -> None:
    async with opened() as hall:
        await hall.pool.update([report()])
        await hall.arrive(request())
        hall.pool.refused(hall.places[0].seat.worker, retry_seconds=60)
        hall.places[0].requeue("worker w is full")
        assert (hall.dispatcher.num_waiting, hall.dispatcher.num_running) == (1, 0)
        await hall.pool.update([report(num_tokens=1)])
        assert hall.dispatcher.num_running == 1
