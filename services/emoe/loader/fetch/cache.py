"""The folder that fetched models are kept in: one folder a model, whole or not there, for any number of loaders.

    DIGEST/            whole: the digest is of source and revision
    DIGEST.partial/    on its way
    DIGEST.pin.json    which revision a source's asked one was resolved to, once
    DIGEST.lock        held by the one loader that fetches from this source

A whole folder is used without a lock, so the cache may be read-only once it is filled.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

from emoe.loader.fetch.failures import FetchError, Reason
from emoe.loader.fetch.remotes import RemoteFile
from emoe.store.strict_json import parse_object

MANIFEST = ".emoe-source.json"
LOOK_AGAIN_SECONDS = 0.5


class ModelCache:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def folder_of(self, address: str, revision: str) -> Path:
        return self._folder / _digest(address, revision)

    def partial_of(self, address: str, revision: str) -> Path:
        return self._folder / f"{_digest(address, revision)}.partial"

    def pinned(self, address: str, asked: str | None) -> str | None:
        """The revision that this one was resolved to before."""
        try:
            revision = parse_object(self._pin_path(address, asked).read_bytes()).get("revision")
        except (FileNotFoundError, ValueError):
            return None
        return revision if isinstance(revision, str) else None

    def pin(self, address: str, asked: str | None, revision: str) -> None:
        """What an older revision left half fetched goes. Under the lock."""
        older = self.pinned(address, asked)
        if older not in (None, revision):
            shutil.rmtree(self.partial_of(address, str(older)), ignore_errors=True)
        document = {"source": address, "asked": asked, "revision": revision}
        _replace(self._pin_path(address, asked), json.dumps(document))

    def whole(self, address: str, revision: str) -> Path | None:
        """The model's folder if it has every file at its full size."""
        folder = self.folder_of(address, revision)
        try:
            files = parse_object((folder / MANIFEST).read_bytes())["files"]
            is_whole = all((folder / name).stat().st_size == size for name, size in files.items())  # type: ignore[attr-defined]
        except (OSError, ValueError, KeyError, AttributeError):
            return None
        return folder if is_whole else None

    def begin(self, address: str, revision: str) -> Path:
        """The partial folder; a damaged whole one becomes it, and what it has is kept. Under the lock."""
        partial, folder = self.partial_of(address, revision), self.folder_of(address, revision)
        if folder.exists() and not partial.exists():
            folder.rename(partial)
        partial.mkdir(parents=True, exist_ok=True)
        return partial

    def finish(self, address: str, revision: str, files: Iterable[RemoteFile]) -> Path:
        """From partial to whole in one step. Under the lock."""
        partial, folder = self.partial_of(address, revision), self.folder_of(address, revision)
        document = {"source": address, "revision": revision, "files": {file.name: file.num_bytes for file in files}}
        _replace(partial / MANIFEST, json.dumps(document))
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
        return folder

    @contextlib.asynccontextmanager
    async def locked(self, address: str, *, wait_seconds: float, on_wait: Callable[[], None]) -> AsyncIterator[None]:
        """One loader at a time, over processes and nodes. FetchError when the other is not done in time."""
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder / f"{_digest(address)}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
        try:
            await _lock(descriptor, address, wait_seconds=wait_seconds, on_wait=on_wait)
            yield
        finally:
            os.close(descriptor)

    def _pin_path(self, address: str, asked: str | None) -> Path:
        return self._folder / f"{_digest(address, asked)}.pin.json"


async def _lock(descriptor: int, address: str, *, wait_seconds: float, on_wait: Callable[[], None]) -> None:
    try:
        async with asyncio.timeout(wait_seconds):
            while not _try_lock(descriptor):
                on_wait()
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
    except TimeoutError:
        raise FetchError(
            Reason.UNREACHABLE, f"another loader has been fetching {address} into this cache for {wait_seconds:g} s"
        ) from None


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _digest(*parts: str | None) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_text(text + "\n", encoding="utf-8")
    fresh.replace(path)
