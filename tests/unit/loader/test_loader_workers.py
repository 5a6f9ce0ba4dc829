"""The list of subscribed workers: who is in it, who hears of it, and which plan is still to be sent."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np
import pytest

from emoe.core.errors import NotReadyError, QueueFullError
from emoe.loader.news import News
from emoe.loader.workers import Plan, Workers, WorkerState

SHAPE = (1, 4)


def state(worker_id: str, *, num_running: int = 0) -> WorkerState:
    return WorkerState(
        worker_id=worker_id,
        address="127.0.0.1:1",
        num_slots=2,
        resident=np.zeros(SHAPE, dtype=np.bool_),
        num_running=num_running,
    )


def plan(epoch: int) -> Plan:
    return Plan(epoch=epoch, wanted=np.ones(SHAPE, dtype=np.bool_), demand=np.ones(SHAPE))


def ids(workers: Workers) -> list[str]:
    return [worker.worker_id for worker in workers.states()]


def test_a_worker_is_listed_while_it_is_subscribed() -> None:
    workers = Workers(planning=News())
    with workers.joined(state("a")), workers.joined(state("b")):
        assert ids(workers) == ["a", "b"]
    assert ids(workers) == []


def test_every_change_is_news() -> None:
    planning = News()
    workers = Workers(planning=planning)
    with workers.joined(state("a")) as member:
        assert (workers.news.count, planning.count) == (1, 1)
        workers.update(member, state("a", num_running=3))
        assert workers.news.count == 2
        assert workers.states()[0].num_running == 3
    assert (workers.news.count, planning.count) == (3, 3)


async def test_a_second_stream_of_a_worker_takes_the_place_of_the_first() -> None:
    workers = Workers(planning=News())
    with contextlib.ExitStack() as first:
        old = first.enter_context(workers.joined(state("a")))
        with workers.joined(state("a", num_running=1)) as new:
            with pytest.raises(NotReadyError, match="subscribed again"):
                await old.next_plan(after_epoch=0)
            workers.update(old, state("a", num_running=9))
            first.close()
            assert workers.members() == (new,)
            assert workers.states()[0].num_running == 1


def test_too_many_workers_are_refused() -> None:
    workers = Workers(planning=News(), max_workers=1)
    with workers.joined(state("a")):
        with pytest.raises(QueueFullError, match="1 workers"), workers.joined(state("b")):
            pass
        with workers.joined(state("a")):
            assert ids(workers) == ["a"]


async def test_only_the_newest_plan_is_sent_and_only_once() -> None:
    workers = Workers(planning=News())
    with workers.joined(state("a")) as member:
        member.offer(plan(1), now_seconds=0)
        member.offer(plan(2), now_seconds=0)
        assert (await member.next_plan(after_epoch=0)).epoch == 2
        waiting = asyncio.create_task(member.next_plan(after_epoch=2))
        await asyncio.sleep(0)
        assert not waiting.done()
        member.offer(plan(3), now_seconds=0)
        assert (await waiting).epoch == 3


async def test_news_between_looking_and_waiting_is_not_lost() -> None:
    news = News()
    seen = news.count
    news.announce()
    async with asyncio.timeout(5):
        await news.after(seen)


async def test_news_wakes_all_who_wait() -> None:
    news = News()
    waiting = [asyncio.create_task(news.after(0)) for _ in range(3)]
    await asyncio.sleep(0)
    news.announce()
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting)


async def test_waiting_for_news_ends_with_its_time() -> None:
    async with asyncio.timeout(5):
        await News().after(0, timeout_seconds=0.001)
