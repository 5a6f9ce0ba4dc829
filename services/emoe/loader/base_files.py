"""The checkpoint's files for those who cannot see them: their list, and the bytes of one that are no expert's.

Stands between ListFiles and ReadFile and the store. Read in pieces, on threads, so nobody waits for a large file.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import xxhash

from emoe.core.errors import CheckpointError, InvalidRequestError
from emoe.store.published import PublishedFile, list_files
from emoe.store.store import ExpertStore

PIECE_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """`xxh3` of all the file's base bytes, on the last piece alone."""

    offset: int
    data: bytes
    last: bool = False
    xxh3: int = 0


class BaseFiles:
    def __init__(self, folder: Path, files: tuple[PublishedFile, ...]) -> None:
        self.files = files
        self._folder = folder
        self._by_name = {file.name: file for file in files}

    @classmethod
    def of(cls, store: ExpertStore) -> BaseFiles:
        return cls(store.folder, list_files(store))

    async def read(self, name: str) -> AsyncGenerator[Piece]:
        """At least one piece; an empty last one carries the checksum. CheckpointError when the file has changed."""
        file = self._by_name.get(name)
        if file is None:
            raise InvalidRequestError(f"{name!r:.100} is no file of this checkpoint; ListFiles says which are")
        hasher = xxhash.xxh3_64()
        with _opened(self._folder / name) as descriptor:
            for run in file.base:
                for offset in range(run.offset, run.offset + run.num_bytes, PIECE_BYTES):
                    num_bytes = min(PIECE_BYTES, run.offset + run.num_bytes - offset)
                    data = await asyncio.to_thread(os.pread, descriptor, num_bytes, offset)
                    if len(data) != num_bytes:
                        raise CheckpointError(f"{self._folder / name}: cut short while in use; fetch the file again")
                    hasher.update(data)
                    yield Piece(offset=offset, data=data)
        yield Piece(offset=file.num_bytes, data=b"", last=True, xxh3=hasher.intdigest())


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened ({error.strerror}); restore the file") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)
