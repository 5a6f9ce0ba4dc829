"""The background work of the front door: the loader's worker list and profile, task loads to it, probes of workers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from emoe.runtime.reconnect import keep_connected
from emoe.scheduler.client import LoaderClient, TaskReport, report_to_proto
from emoe.scheduler.dispatch import Dispatcher
from emoe.scheduler.lengths import LengthEstimator
from emoe.scheduler.profile import learn_lengths
from emoe.scheduler.workers import WorkerPool
from emoe.v1 import loader_pb2

REPORT_INTERVAL_SECONDS = 0.1


async def follow_workers(loader: LoaderClient, pool: WorkerPool, connected: asyncio.Event) -> None:
    """`connected` is set at the first list of each connection."""

    async def stream() -> None:
        first = True
        try:
            async for workers in loader.watch_workers():
                await pool.update(workers)
                if first:
                    connected.set()
                first = False
        finally:
            pool.lose_loader()

    await keep_connected("the loader's worker list", stream)


async def follow_profile(loader: LoaderClient, lengths: LengthEstimator, connected: asyncio.Event) -> None:
    """Once a connection: a loader that comes back may have another profile."""
    while True:
        await connected.wait()
        connected.clear()
        await learn_lengths(loader, lengths)


async def report_tasks(loader: LoaderClient, dispatcher: Dispatcher, scheduler_id: str) -> None:
    """On change, at most every REPORT_INTERVAL_SECONDS; each new stream begins with a whole report."""

    async def reports() -> AsyncIterator[loader_pb2.ReportTasksRequest]:
        last: TaskReport | None = None
        while True:
            dispatcher.changed.clear()
            report = dispatcher.report()
            if not report.says_the_same(last):
                yield report_to_proto(scheduler_id, report)
            last = report
            await asyncio.sleep(REPORT_INTERVAL_SECONDS)
            await dispatcher.changed.wait()

    async def stream() -> None:
        await loader.report_tasks(reports())

    await keep_connected("the loader's task reports", stream)


async def probe_workers(pool: WorkerPool, *, interval_seconds: float, timeout_seconds: float) -> None:
    """At once when a call broke, and every `interval_seconds`."""
    while True:
        pool.doubted.clear()
        await pool.probe(timeout_seconds=timeout_seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(interval_seconds):
                await pool.doubted.wait()
