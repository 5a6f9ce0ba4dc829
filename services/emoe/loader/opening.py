"""From a folder or a source to an open checkpoint, however long it takes: what a loader does before it can serve.

An attempt that fails is told of by WatchModel and followed by another, after a pause that grows; seldom where only a
change of what was asked for will help. Knows neither gRPC nor workers.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from pathlib import Path

from emoe.core.errors import CheckpointError, UnsupportedModelError
from emoe.loader.fetch.cache import ModelCache
from emoe.loader.fetch.failures import FetchError, Reason, explain
from emoe.loader.fetch.fetching import Fetching
from emoe.loader.fetch.sources import FolderSource, RemoteSource, parse_source
from emoe.loader.progress import Phase, Progress
from emoe.store.store import ExpertStore

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetryPace:
    """After a failure that may pass, a pause that doubles from `first_seconds` to `longest_seconds`."""

    first_seconds: float
    longest_seconds: float
    permanent_seconds: float

    def pause_seconds(self, error: FetchError, num_failed: int) -> float:
        if error.permanent:
            return self.permanent_seconds
        return min(self.first_seconds * 2.0 ** min(num_failed - 1, 32), self.longest_seconds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opening:
    """`address`: a source. `wait_seconds`: for another loader that fetches it into the same cache."""

    address: str
    revision: str | None
    cache: ModelCache
    cache_dir: Path | None
    progress: Progress
    pace: RetryPace
    wait_seconds: float

    async def run(self) -> ExpertStore:
        """Returns once the model is open; the caller closes it."""
        num_failed = 0
        while True:
            try:
                return await self._try()
            except (FetchError, CheckpointError, UnsupportedModelError, OSError) as error:
                num_failed += 1
                failure = explain(error)
                pause_seconds = self.pace.pause_seconds(failure, num_failed)
                self.progress.fail(failure, retry_seconds=pause_seconds)
                _log.warning("%s: %s; trying again in %g s", failure.reason, failure, pause_seconds)
            await asyncio.sleep(pause_seconds)

    async def _try(self) -> ExpertStore:
        self.progress.enter(Phase.RESOLVING)
        source = parse_source(self.address)
        if isinstance(source, FolderSource):
            if not source.folder.is_dir():
                raise FetchError(Reason.NOT_FOUND, f"{source.folder}: no such folder")
            folder = source.folder
        else:
            folder = await self._fetch(source)
        self.progress.enter(Phase.VERIFYING)
        return await asyncio.to_thread(ExpertStore.open, folder.resolve(), cache_dir=self.cache_dir)

    async def _fetch(self, source: RemoteSource) -> Path:
        if self.revision and not source.has_revisions:
            _log.info("revision has no effect: %s has none", self.address)
        fetching = Fetching(
            source=source,
            revision=self.revision,
            cache=self.cache,
            progress=self.progress,
            wait_seconds=self.wait_seconds,
        )
        return await fetching.run()
