"""Queue and admission without a network: bounds, order, who gives way, and what is reported."""

from __future__ import annotations

import asyncio
import contextlib
import math

import pytest
from scheduler_hall import NUM_SEQUENCES, Hall, opened, report, request, settle

from emoe.core.errors import NotReadyError, QueueFullError
from emoe.core.schedule.cluster import Cluster
from emoe.core.schedule.decisions import DecisionKind
from emoe.core.schedule.desk import Desk
from emoe.core.schedule.policies import make_policy
from emoe.core.schedule.policy import Admission
from emoe.core.schedule.request import QueuedRequest
from emoe.scheduler.dispatch import Dispatcher
from emoe.scheduler.tally import RECENT_SECONDS
from emoe.scheduler.workers import WorkerPool


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
