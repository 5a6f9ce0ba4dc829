"""A model from its source into the cache: small files first, then the weights that they name.

So a model that cannot be served is refused before its weights are fetched. Stands between the opening loop and the
sources; knows neither gRPC nor what becomes of the folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from emoe.loader.fetch.cache import ModelCache
from emoe.loader.fetch.failures import FetchError, Reason
from emoe.loader.fetch.files import fetch_file, part_path
from emoe.loader.fetch.remotes import Listing, Remote, RemoteFile
from emoe.loader.fetch.sources import RemoteSource
from emoe.loader.progress import Phase, Progress
from emoe.store.config import Config
from emoe.store.families import parse_shape
from emoe.store.published import is_small_file
from emoe.store.shards import INDEX_FILE, SINGLE_FILE, find_shards

FILES_AT_ONCE = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fetching:
    """What every attempt for one model has in common. `wait_seconds`: for another loader that fetches it already."""

    source: RemoteSource
    revision: str | None
    cache: ModelCache
    progress: Progress
    wait_seconds: float

    async def run(self) -> Path:
        """The model's folder. FetchError, UnsupportedModelError, CheckpointError or OSError."""
        address = self.source.address
        if folder := self._whole():
            return folder
        async with self.cache.locked(address, wait_seconds=self.wait_seconds, on_wait=self._show_the_other):
            if folder := self._whole():
                return folder
            remote = self._open_source()
            try:
                return await self._fetch(remote)
            finally:
                await remote.close()

    def _whole(self) -> Path | None:
        """Without the network, if the cache has it."""
        address = self.source.address
        for revision in (self.cache.pinned(address, self.revision), self.revision):
            if revision and (folder := self.cache.whole(address, revision)):
                self.progress.resolve(revision)
                return folder
        return None

    async def _fetch(self, remote: Remote) -> Path:
        address, progress = self.source.address, self.progress
        pinned = self.cache.pinned(address, self.revision) if self.source.has_revisions else None
        listing = await remote.list_files(pinned or self.revision)
        self.cache.pin(address, self.revision, listing.revision)
        progress.resolve(listing.revision)
        partial = self.cache.begin(address, listing.revision)
        progress.enter(Phase.FETCHING)
        small = pick_small(listing, address)
        await _fetch_files(remote, small, partial, progress)
        parse_shape(Config.read(partial))
        files = [*small, *pick_weights(listing, partial, address)]
        _show_present(files, partial, progress)
        _check_space(partial, missing_bytes=progress.num_bytes_total - progress.num_bytes_done)
        await _fetch_files(remote, files, partial, progress)
        return self.cache.finish(address, listing.revision, files)

    def _open_source(self) -> Remote:
        try:
            return self.source.open()
        except ModuleNotFoundError as error:
            raise FetchError(
                Reason.UNSUPPORTED, f"{self.source.address} needs {error.name}: pip install 'emoe[fetch]'"
            ) from error

    def _show_the_other(self) -> None:
        """Another loader's bytes, as they come."""
        revision = self.cache.pinned(self.source.address, self.revision)
        if revision is None:
            return
        partial = self.cache.partial_of(self.source.address, revision)
        with contextlib.suppress(OSError):
            self.progress.num_bytes_done = sum(path.stat().st_size for path in partial.iterdir())
        if self.progress.phase is not Phase.FETCHING:
            self.progress.resolve(revision)
            self.progress.enter(Phase.FETCHING)


def pick_small(listing: Listing, address: str) -> list[RemoteFile]:
    small = [file for file in listing.files if is_small_file(file.name)]
    if "config.json" not in {file.name for file in small}:
        raise FetchError(Reason.NOT_FOUND, f"{address} has no config.json; is it a checkpoint of transformers?")
    return small


def pick_weights(listing: Listing, folder: Path, address: str) -> list[RemoteFile]:
    """As the store will look for them; `folder` has the index. Never a second copy in another format."""
    listed = {file.name: file for file in listing.files}
    if SINGLE_FILE in listed:
        return [listed[SINGLE_FILE]]
    if INDEX_FILE not in listed:
        raise FetchError(
            Reason.UNSUPPORTED,
            f"{address} has no {SINGLE_FILE} and no {INDEX_FILE}; emoe reads safetensors only: publish the model so, "
            "by transformers' save_pretrained",
        )
    names = find_shards(folder).files
    absent = [name for name in names if name not in listed]
    if absent:
        raise FetchError(Reason.CORRUPT, f"{address}: {INDEX_FILE} names {absent[0]}, which the source does not have")
    return [listed[name] for name in names]


async def _fetch_files(remote: Remote, files: Sequence[RemoteFile], folder: Path, progress: Progress) -> None:
    """The first that fails ends the others, which keep what they have."""
    places = asyncio.Semaphore(FILES_AT_ONCE)

    async def fetch(file: RemoteFile) -> None:
        async with places:
            await fetch_file(remote, file, folder, progress)

    try:
        async with asyncio.TaskGroup() as group:
            for file in files:
                if not _is_here(file, folder):
                    group.create_task(fetch(file), name=f"fetch {file.name}")
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


def _is_here(file: RemoteFile, folder: Path) -> bool:
    """A file has its name only once it was found right; one that was cut since then comes again."""
    path = folder / file.name
    if path.exists() and path.stat().st_size != file.num_bytes:
        path.unlink()
    return path.exists()


def _show_present(files: Sequence[RemoteFile], folder: Path, progress: Progress) -> None:
    progress.num_bytes_total = sum(file.num_bytes for file in files)
    progress.num_bytes_done = sum(_bytes_here(file, folder) for file in files)
    progress.news.announce()


def _bytes_here(file: RemoteFile, folder: Path) -> int:
    if _is_here(file, folder):
        return file.num_bytes
    part = part_path(folder, file.name)
    return min(part.stat().st_size, file.num_bytes) if part.exists() else 0


def _check_space(folder: Path, *, missing_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if missing_bytes > free_bytes:
        raise FetchError(
            Reason.NO_SPACE,
            f"{missing_bytes} bytes are still to come, and the model's cache has room for {free_bytes}; make it larger",
        )
