"""A standing watch on every worker's own health: one that dies, drains or hangs gets no new request from then on.

The loader's list says who may be asked; this says, within two seconds, who can. A worker that says it does not serve,
or whose connection broke, keeps the calls it has: they end by themselves. Of one that is silent, those that have not
begun go elsewhere, once; after long silence all are ended.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import NoReturn

import grpc

from emoe.runtime.cancellation import this_task_is_cancelled
from emoe.scheduler.worker import Worker
from emoe.scheduler.workers import WorkerPool

log = logging.getLogger(__name__)

RECONNECT_SECONDS = 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class HealthPace:
    """A worker that hangs is out after `interval_seconds + timeout_seconds` at most."""

    interval_seconds: float
    timeout_seconds: float
    silence_seconds: float
    """After so long without an answer the calls of a worker are ended."""


async def watch_health(pool: WorkerPool, pace: HealthPace) -> NoReturn:
    """Until cancelled: one watch a worker, from its first listing until it is forgotten."""
    watches: dict[Worker, asyncio.Task[None]] = {}
    async with asyncio.TaskGroup() as group:
        while True:
            pool.membership.clear()
            workers = set(pool.workers())
            for worker in workers - watches.keys():
                watches[worker] = group.create_task(_follow(worker, pool, pace), name=f"health of {worker.key}")
            for worker in watches.keys() - workers:
                watches.pop(worker).cancel()
            await pool.membership.wait()


async def _follow(worker: Worker, pool: WorkerPool, pace: HealthPace) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(_listen(worker, pool))
        group.create_task(_ask(worker, pool, pace))


async def _listen(worker: Worker, pool: WorkerPool) -> None:
    """What the worker says by itself, at once: that it drains, or, by a connection that breaks, that it is gone."""
    while True:
        try:
            async for is_serving in worker.client.watch_health():
                pool.hear(worker, is_serving=is_serving)
        except asyncio.CancelledError:
            if this_task_is_cancelled():
                raise
        except grpc.aio.UsageError:
            return  # its channel is closed: the worker is forgotten, and this watch about to be
        except grpc.aio.AioRpcError as error:
            log.debug("worker %s: its health is not heard: %s", worker.key, error.details())
        pool.hear(worker, is_serving=False)
        await asyncio.sleep(RECONNECT_SECONDS)


async def _ask(worker: Worker, pool: WorkerPool, pace: HealthPace) -> None:
    """A process that is stopped, or whose node is gone, breaks no connection: it only does not answer."""
    clock = asyncio.get_running_loop().time
    heard_seconds = clock()
    while True:
        await asyncio.sleep(pace.interval_seconds)
        try:
            is_serving = await worker.client.check_health(timeout_seconds=pace.timeout_seconds)
        except asyncio.CancelledError:
            if this_task_is_cancelled():
                raise
            is_serving = False
        except grpc.aio.UsageError:
            return
        except grpc.aio.AioRpcError as error:
            is_serving = False
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                if clock() - heard_seconds > pace.silence_seconds:
                    worker.end_calls()
                pool.hears_nothing(worker)
                continue
        heard_seconds = clock()
        pool.hear(worker, is_serving=is_serving)
