"""The loader as a process: opens the checkpoint, serves its bytes, and plans for the workers that subscribe."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import AsyncIterator

from emoe.core.experts import ExpertGrid
from emoe.core.planning import PLANNERS
from emoe.loader.client import PredictorClient
from emoe.loader.news import News
from emoe.loader.planning_loop import Ask, Pace, PlanningLoop
from emoe.loader.reads import ExpertReads
from emoe.loader.service import LoaderService
from emoe.loader.settings import LoaderSettings
from emoe.loader.task_mix import TaskMix
from emoe.loader.workers import Workers
from emoe.runtime.grids import ModelId
from emoe.runtime.lifecycle import ServiceHost, run_process, service_host
from emoe.store.store import ExpertStore

_log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def serving(settings: LoaderSettings) -> AsyncIterator[ServiceHost]:
    """A loader that answers at the host's address; leaving ends its calls, then closes the files."""
    async with contextlib.AsyncExitStack() as files, service_host(settings, name="loader") as host:
        store = await asyncio.to_thread(ExpertStore.open, settings.model, cache_dir=settings.cache_dir)
        files.callback(store.close)
        reads = ExpertReads(
            store,
            expert_bytes=store.grid.expert_bytes,
            max_bytes=settings.max_pulled_bytes,
            num_threads=settings.read_threads,
        )
        files.push_async_callback(asyncio.to_thread, reads.close)
        model = ModelId(digest=store.digest, family=store.family)
        news = News()
        workers, mix = Workers(planning=news), TaskMix(planning=news)
        service = LoaderService(
            model=model,
            grid=store.grid,
            path=str(settings.model.resolve()),
            workers=workers,
            mix=mix,
            reads=reads,
            heartbeat_timeout_seconds=settings.heartbeat_timeout_seconds,
        )
        service.register(host)
        await host.start()
        ask = await files.enter_async_context(_predictor(settings.predictor, model, store.grid))
        loop = _planning_loop(settings, workers=workers, mix=mix, news=news, grid=store.grid, ask=ask)
        host.spawn("ask", loop.ask_forever())
        host.spawn("plan", loop.plan_forever())
        await host.set_ready(True)
        yield host


@contextlib.asynccontextmanager
async def _predictor(address: str | None, model: ModelId, grid: ExpertGrid) -> AsyncIterator[Ask | None]:
    if address is None:
        _log.info("no predictor is set: demand is uniform, and refresh_interval_prompts does nothing")
        yield None
        return
    client = PredictorClient(address, model=model, grid=grid)
    try:
        yield client.ask
    finally:
        await client.close()


def _planning_loop(
    settings: LoaderSettings, *, workers: Workers, mix: TaskMix, news: News, grid: ExpertGrid, ask: Ask | None
) -> PlanningLoop:
    return PlanningLoop(
        workers=workers,
        mix=mix,
        news=news,
        grid=grid,
        planner=PLANNERS[settings.planner],
        ask=ask,
        pace=Pace(
            refresh_interval_prompts=settings.refresh_interval_prompts,
            ask_again_seconds=settings.predictor_retry_seconds,
            apply_deadline_seconds=settings.apply_deadline_seconds,
        ),
        clock=time.monotonic,
    )


async def serve(settings: LoaderSettings) -> None:
    """Until SIGTERM or SIGINT."""
    async with serving(settings) as host:
        await host.run()


def main() -> int:
    settings = LoaderSettings()  # type: ignore[call-arg]  # from the environment
    return run_process(serve, settings, name="loader")


if __name__ == "__main__":
    sys.exit(main())
