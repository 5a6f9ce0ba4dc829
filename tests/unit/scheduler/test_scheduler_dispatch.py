"""Queue and admission without a network: bounds, order, and never more on a worker than it holds."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emoe.core.errors import NotReadyError, QueueFullError
from emoe.core.schedule.cluster import Cluster
from emoe.core.schedule.costs import StepCosts
from emoe.core.schedule.decisions import DecisionFilter, DecisionKind, DecisionLog
from emoe.core.schedule.desk import Desk
from emoe.core.schedule.policies import make_policy
from emoe.core.schedule.policy import Admission
from emoe.core.schedule.request import QueuedRequest
from emoe.scheduler.client import ReportedWorker
from emoe.scheduler.costs import CostMemory
from emoe.scheduler.dispatch import Dispatcher, Place
from emoe.scheduler.tally import RECENT_SECONDS
from emoe.scheduler.worker import Worker
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


async def test_request_that_finds_room_starts_at_once() -> None:
    async with opened() as hall:
        await hall.pool.update([report()])
        await hall.arrive(request())
        assert (hall.dispatcher.num_running, hall.dispatcher.num_waiting) == (1, 0)


async def test_worker_that_is_not_ready_gets_nothing() -> None:
    async with opened() as hall:
        await hall.pool.update([report(ready=False)])
        await hall.arrive(request())
        assert hall.dispatcher.num_waiting == 1
        await hall.pool.update([report(ready=True)])
        await settle()
        assert hall.dispatcher.num_running == 1


async def test_end_of_one_request_starts_the_next() -> None:
    async with opened() as hall:
        await hall.pool.update([report(num_running=NUM_SEQUENCES - 1)])
        first = await hall.arrive(request(1.0))
        await hall.arrive(request(2.0))
        assert hall.dispatcher.num_waiting == 1
        await hall.finish(first)
        assert [one.arrived_seconds for one in hall.started] == [1.0, 2.0]


async def test_soonest_due_first_token_runs_first_under_edf() -> None:
    async with opened(policy="edf") as hall:
        await hall.arrive(request(1.0))
        await hall.arrive(request(2.0, ttft_seconds=9.0))
        await hall.arrive(request(3.0, ttft_seconds=0.5))
        await hall.pool.update([report()])
        await settle()
        assert [one.arrived_seconds for one in hall.started] == [3.0, 2.0, 1.0]


async def test_estimate_larger_than_any_worker_still_starts() -> None:
    async with opened() as hall:
        await hall.pool.update([report(max_tokens=50)])
        await hall.arrive(request(num_prompt_tokens=10**6))
        assert hall.dispatcher.num_running == 1


async def test_request_larger_than_the_byte_bound_may_still_start_when_nothing_waits() -> None:
    async with opened(max_bytes=5) as hall:
        await hall.pool.update([report()])
        await hall.arrive(request(size_bytes=10))
        assert hall.dispatcher.num_running == 1


async def test_loads_count_each_task_apart() -> None:
    async with opened() as hall:
        await hall.pool.update([report(num_running=NUM_SEQUENCES - 1)])
        for task in ("qa", "code", "code"):
            await hall.arrive(request(task=task))

        code, qa = hall.dispatcher.report().loads

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


async def test_a_request_that_is_queued_again_is_counted_once() -> None:
    async with opened() as hall:
        await hall.pool.update([report()])
        await hall.arrive(request())
        hall.places[0].requeue("its worker died")
        assert await hall.places[0].seated()
        assert (hall.dispatcher.num_prompts, hall.dispatcher.num_running) == (1, 1)
    kinds = [DecisionKind.ADMITTED, DecisionKind.REQUEUED, DecisionKind.ADMITTED, DecisionKind.CANCELLED]
    assert hall.kinds() == kinds
    assert hall.dispatcher.num_entries == 0


async def test_a_request_queued_again_waits_though_the_queue_is_full() -> None:
    async with opened(max_requests=1) as hall:
        await hall.pool.update([report(num_running=NUM_SEQUENCES - 1)])
        await hall.arrive(request(request_id="first"))
        waiting = await hall.arrive(request(request_id="second"))
        await hall.pool.update([report(ready=False)])
        hall.places[0].requeue("its worker died")
        assert hall.dispatcher.num_waiting == 2
        assert not waiting.done()


async def test_the_newest_of_the_tenant_with_the_most_gives_way() -> None:
    async with opened(max_requests=3) as hall:
        many = [await hall.arrive(request(request_id=f"many {index}", tenant="many")) for index in range(3)]
        await hall.arrive(request(request_id="few", tenant="few"))

        with pytest.raises(QueueFullError, match=r"3 requests are waiting, .* tenant 'many' has most of them"):
            await many[2]
        assert hall.kinds("many 2") == [DecisionKind.REFUSED]
        assert hall.dispatcher.num_waiting == 3


async def test_a_full_queue_refuses_the_newcomer_with_the_time_that_its_tokens_take() -> None:
    async with opened(max_requests=2) as hall:
        await hall.pool.update([report(num_running=NUM_SEQUENCES - 1)])
        for index in range(3):
            await hall.arrive(request(request_id=f"request {index}"))
        hall.places[0].wrote(1)
        hall.clock.seconds = 2.0
        hall.places[0].wrote(15)

        with pytest.raises(QueueFullError, match="try again in") as full:
            await (await hall.arrive(request()))

        # In two seconds a prompt of 5 tokens and 16 of an answer; two times 11 tokens wait.
        assert full.value.retry_after_seconds == pytest.approx(22 / (21 / 2), rel=0.1)
        assert hall.dispatcher.num_refused == 1


async def test_two_requests_of_one_id_are_told_apart() -> None:
    async with opened() as hall:
        await hall.pool.update([report()])
        first, second = await hall.arrive(request()), await hall.arrive(request())
        await hall.finish(first)
        assert (hall.dispatcher.num_running, second.done()) == (1, False)
        await hall.finish(second)
    assert hall.kinds() == [DecisionKind.ADMITTED] * 2 + [DecisionKind.DONE] * 2


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        pytest.param(None, DecisionKind.DONE, id="none"),
        pytest.param(TimeoutError(), DecisionKind.EXPIRED, id="deadline"),
        pytest.param(asyncio.CancelledError(), DecisionKind.CANCELLED, id="client left"),
        pytest.param(NotReadyError("worker w is unavailable"), DecisionKind.FAILED, id="worker died"),
    ],
)
async def test_how_the_place_is_left_is_how_the_request_ended(error: BaseException | None, kind: DecisionKind) -> None:
    hall = Hall()
    with contextlib.suppress(TimeoutError, asyncio.CancelledError, NotReadyError), hall.dispatcher.place(request()):
        if error is not None:
            raise error
    assert hall.kinds() == [kind]
    assert hall.dispatcher.num_entries == 0


async def test_a_workers_tasks_are_reported_with_what_came_lately() -> None:
    async with opened() as hall:
        await hall.pool.update([report()])
        first = await hall.arrive(request(task="code"))
        await hall.arrive(request(task="qa"))
        await hall.finish(first)
        hall.clock.seconds = RECENT_SECONDS

        (worker,) = hall.dispatcher.report().workers

        assert (worker.worker_id, [(load.task, load.num_running) for load in worker.running]) == ("w", [("qa", 1)])
        assert worker.recent == pytest.approx({"code": 1 / math.e, "qa": 1 / math.e})


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


async def test_what_a_policy_held_back_is_asked_for_again_after_a_while() -> None:
    """No event comes: the policy lets it start at a time of its own."""

    class Patient:
        name = "patient"

        def __init__(self) -> None:
            self.num_asked = 0
            self.rest = make_policy("fifo")

        def __len__(self) -> int:
            return len(self.rest)

        def add(self, one: QueuedRequest, now_seconds: float) -> None:
            self.rest.add(one, now_seconds)

        def discard(self, request_id: str) -> None:
            self.rest.discard(request_id)

        def pick(self, cluster: Cluster, now_seconds: float) -> Admission | None:
            self.num_asked += 1
            return self.rest.pick(cluster, now_seconds) if self.num_asked > 3 else None

    cluster = Cluster()
    desk = Desk(policy=Patient(), cluster=cluster, max_requests=9, max_bytes=999)
    async with contextlib.aclosing(WorkerPool(cluster)) as pool:
        dispatcher = Dispatcher(desk=desk, pool=pool)
        await pool.update([report()])
        with dispatcher.place(request()) as place:
            async with asyncio.timeout(5):
                await place.seated()
