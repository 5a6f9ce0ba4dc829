"""The loader as a process: opens the checkpoint, serves its bytes, and plans for the workers that subscribe."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import sys
import time
from collections.abc import AsyncIterator

from emoe.core.planning import PLANNERS, PinnedPlanner
from emoe.core.refresh import DEFAULT_REFRESH_INTERVAL_PROMPTS
from emoe.loader.bulk import BulkDoor, BulkPort, listen_at, listen_on_node
from emoe.loader.client import PredictorClient
from emoe.loader.coverage import Coverage
from emoe.loader.expert_files import ExpertFiles
from emoe.loader.fetch.cache import ModelCache
from emoe.loader.news import News
from emoe.loader.opened import OpenModel
from emoe.loader.opening import Opening, RetryPace
from emoe.loader.planning_loop import Ask, Pace, PlanningLoop
from emoe.loader.progress import Phase, Progress
from emoe.loader.reads import ExpertReads
from emoe.loader.sending import BulkSource, open_byte_sender, open_place_sender
from emoe.loader.service import LoaderService
from emoe.loader.settings import LoaderSettings
from emoe.loader.task_mix import TaskMix
from emoe.loader.tickets import Tickets
from emoe.loader.workers import Workers
from emoe.runtime.lifecycle import ServiceHost, run_process, service_host
from emoe.store.store import ExpertStore

_log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def serving(settings: LoaderSettings) -> AsyncIterator[ServiceHost]:
    """A loader that listens at the host's address; leaving ends its calls, then closes the files.

    A model's folder is open by then, or this raises; a source is fetched and opened in the background."""
    async with contextlib.AsyncExitStack() as files, service_host(settings, name="loader") as host:
        loader = _Loader(settings, host, files)
        if settings.source is None:
            assert settings.model is not None, "settings have one of them"
            store = await asyncio.to_thread(ExpertStore.open, settings.model, cache_dir=settings.cache_dir)
            await host.start()
            await loader.begin(store)
        else:
            await host.start()
            host.spawn("model", loader.open_source(settings.source))
        yield host


class _Loader:
    """The parts, and the step from a loader without a model to one that serves it."""

    def __init__(self, settings: LoaderSettings, host: ServiceHost, files: contextlib.AsyncExitStack) -> None:
        self._settings = settings
        self._host = host
        self._files = files
        self._news = News()
        self._workers, self._mix = Workers(planning=self._news), TaskMix(planning=self._news)
        self._coverage = Coverage()
        self._progress = Progress(settings.source or str(settings.model))
        self._service = LoaderService(
            progress=self._progress,
            workers=self._workers,
            mix=self._mix,
            coverage=self._coverage,
            heartbeat_timeout_seconds=settings.heartbeat_timeout_seconds,
        )
        self._service.register(host)

    async def open_source(self, address: str) -> None:
        settings = self._settings
        opening = Opening(
            address=address,
            revision=settings.revision or None,
            cache=ModelCache(settings.model_cache_folder),
            cache_dir=settings.cache_dir,
            progress=self._progress,
            pace=RetryPace(
                first_seconds=settings.fetch_retry_seconds,
                longest_seconds=settings.max_fetch_retry_seconds,
                permanent_seconds=settings.permanent_retry_seconds,
            ),
            wait_seconds=settings.fetch_wait_seconds,
        )
        await self.begin(await opening.run())

    async def begin(self, store: ExpertStore) -> None:
        """Serves the store, and closes it at the end."""
        self._files.callback(store.close)
        reads = ExpertReads(
            store,
            expert_bytes=store.grid.expert_bytes,
            max_bytes=self._settings.max_pulled_bytes,
            num_threads=self._settings.read_threads,
        )
        self._files.push_async_callback(asyncio.to_thread, reads.close)
        model = self._service.model = await asyncio.to_thread(OpenModel.of, store, reads)
        _log.info("%s from %s is open: %d experts", store.family, self._progress.source, model.grid.num_experts_total)
        self._open_bulk_port(store, reads)
        if not self._progress.revision:
            self._progress.resolve(model.id.digest)
        self._progress.enter(Phase.READY)
        ask = await self._files.enter_async_context(_predictor(self._settings.predictor, model))
        loop = PlanningLoop(
            workers=self._workers,
            mix=self._mix,
            news=self._news,
            grid=model.grid,
            planner=PinnedPlanner(PLANNERS[self._settings.planner], self._settings.pinned, model.grid),
            ask=ask,
            pace=pace_from(self._settings),
            clock=time.monotonic,
            coverage=self._coverage,
        )
        self._host.spawn("ask", loop.ask_forever())
        self._host.spawn("plan", loop.plan_forever())
        await self._host.set_ready(True)

    def _open_bulk_port(self, store: ExpertStore, reads: ExpertReads) -> None:
        addresses, path = self._settings.bulk_addresses, self._settings.bulk_socket
        files, tickets, port = ExpertFiles(store), Tickets(), 0
        source = BulkSource(grid=store.grid, reads=reads, files=files, loop=asyncio.get_running_loop())
        self._files.callback(files.close)
        if addresses:
            listener = listen_at(addresses)
            port = listener.getsockname()[1]
            self._accept(BulkPort(listener, tickets=tickets, open_sender=functools.partial(open_byte_sender, source)))
        if path is not None:
            self._accept(
                BulkPort(
                    listen_on_node(path), tickets=tickets, open_sender=functools.partial(open_place_sender, source)
                )
            )
        self._service.bulk = BulkDoor(port=port, tickets=tickets, socket_path=str(path.resolve()) if path else "")

    def _accept(self, port: BulkPort) -> None:
        self._files.push_async_callback(port.close)
        self._host.spawn("bulk", port.accept_forever())


@contextlib.asynccontextmanager
async def _predictor(address: str | None, model: OpenModel) -> AsyncIterator[Ask | None]:
    if address is None:
        _log.info("no predictor is set: demand is uniform, and refresh_interval_prompts does nothing")
        yield None
        return
    client = PredictorClient(address, model=model.id, grid=model.grid, profile=model.profile)
    try:
        yield client.ask
    finally:
        await client.close()


def pace_from(settings: LoaderSettings) -> Pace:
    interval = settings.refresh_interval_prompts
    return Pace(
        refresh_interval_prompts=DEFAULT_REFRESH_INTERVAL_PROMPTS if interval == "auto" else interval,
        adapts=interval == "auto",
        ask_again_seconds=settings.predictor_retry_seconds,
        apply_deadline_seconds=settings.apply_deadline_seconds,
    )


async def serve(settings: LoaderSettings) -> None:
    """Until SIGTERM or SIGINT."""
    async with serving(settings) as host:
        await host.run()


def main() -> int:
    settings = LoaderSettings()
    return run_process(serve, settings, name="loader")


if __name__ == "__main__":
    sys.exit(main())
