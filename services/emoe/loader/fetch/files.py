"""One file of a model: received to its end however often the connection breaks, checked, and only then given its name.

What has arrived stays as NAME.part, so a process that was killed goes on where it stopped. Does not know which source
the bytes come from.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

from emoe.loader.fetch.checksums import Digest, start_digest
from emoe.loader.fetch.failures import FetchError, Reason
from emoe.loader.fetch.remotes import Remote, RemoteFile
from emoe.loader.progress import Progress

MAX_FAILED_TRIES = 4
"""In turn without a byte; each byte starts the count anew."""
FIRST_PAUSE_SECONDS = 0.25
MAX_DAMAGED = 2
WRITE_BYTES = 1 << 20
"""Gathered before a thread writes and hashes them."""

_log = logging.getLogger(__name__)


class Part:
    """The beginning of a file, as far as it has arrived. Blocking; one call at a time. Close it."""

    def __init__(self, folder: Path, file: RemoteFile) -> None:
        self.num_bytes = 0
        self._target = folder / file.name
        self._path = part_path(folder, file.name)
        self._file = file
        self._stream = self._path.open("ab+")
        self._digest = self._new_digest()
        self._take_up()

    def write(self, data: bytes) -> None:
        self._stream.write(data)
        self.num_bytes += len(data)
        if self._digest is not None:
            self._digest.update(data)

    def reset(self) -> None:
        self._stream.truncate(0)
        self.num_bytes = 0
        self._digest = self._new_digest()

    def is_right(self) -> bool:
        wanted = self._file.checksum
        return self._digest is None or wanted is None or self._digest.hexdigest() == wanted.value

    def finish(self) -> None:
        """On disk, and only then by its own name."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._path.replace(self._target)

    def close(self) -> None:
        self._stream.close()

    def _take_up(self) -> None:
        """What an earlier process left."""
        self._stream.seek(0)
        while data := self._stream.read(WRITE_BYTES):
            self.num_bytes += len(data)
            if self._digest is not None:
                self._digest.update(data)
        if self.num_bytes > self._file.num_bytes:
            self.reset()

    def _new_digest(self) -> Digest | None:
        checksum = self._file.checksum
        return None if checksum is None else start_digest(checksum, num_bytes=self._file.num_bytes)


def part_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.part"


async def fetch_file(remote: Remote, file: RemoteFile, folder: Path, progress: Progress) -> None:
    """FetchError once trying again at once has no point."""
    part = await asyncio.to_thread(Part, folder, file)
    try:
        for num_damaged in range(1, MAX_DAMAGED + 1):
            await _receive_all(remote, file, part, progress)
            if part.is_right():
                await asyncio.to_thread(part.finish)
                return
            _log.warning("%s arrived damaged (%d. time); it is thrown away", file.name, num_damaged)
            progress.lose(part.num_bytes)
            part.reset()
        raise FetchError(
            Reason.CORRUPT,
            f"{file.name}: its checksum is not the one that the source says, {MAX_DAMAGED} times in turn",
        )
    finally:
        part.close()


async def _receive_all(remote: Remote, file: RemoteFile, part: Part, progress: Progress) -> None:
    num_failed = 0
    while part.num_bytes < file.num_bytes:
        before = part.num_bytes
        try:
            await _receive(remote, file, part, progress)
        except FetchError as error:
            num_failed = 1 if part.num_bytes > before else num_failed + 1
            if error.permanent or num_failed >= MAX_FAILED_TRIES:
                raise
            _log.info("%s stopped at byte %d of %d: %s", file.name, part.num_bytes, file.num_bytes, error)
            await asyncio.sleep(FIRST_PAUSE_SECONDS * 2 ** (num_failed - 1))


async def _receive(remote: Remote, file: RemoteFile, part: Part, progress: Progress) -> None:
    """One connection's worth."""
    async with remote.open(file, offset=part.num_bytes) as incoming:
        if incoming.offset != part.num_bytes:
            if incoming.offset:
                raise FetchError(
                    Reason.UNREACHABLE, f"{file.name}: asked from byte {part.num_bytes} on, the source began elsewhere"
                )
            progress.lose(part.num_bytes)
            part.reset()
        async with contextlib.aclosing(_gathered(incoming.chunks)) as blocks:
            async for block in blocks:
                if part.num_bytes + len(block) > file.num_bytes:
                    raise FetchError(
                        Reason.CORRUPT, f"{file.name} is longer than the {file.num_bytes} bytes it was listed with"
                    )
                await asyncio.to_thread(part.write, block)
                progress.receive(len(block))
    if part.num_bytes < file.num_bytes:
        raise FetchError(
            Reason.UNREACHABLE, f"{file.name}: the stream ended at byte {part.num_bytes} of {file.num_bytes}"
        )


async def _gathered(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """In blocks; what a broken stream brought is given before it is told of."""
    block = bytearray()
    try:
        async for chunk in chunks:
            block += chunk
            if len(block) >= WRITE_BYTES:
                yield bytes(block)
                block.clear()
    except FetchError:
        if block:
            yield bytes(block)
        raise
    if block:
        yield bytes(block)
