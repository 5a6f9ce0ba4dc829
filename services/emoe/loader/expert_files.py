"""Where an expert's bytes lie, with the files open and mapped: what a socket is given, and a worker on this node.

Descriptors and mappings are its own, apart from the store's. Nothing here looks into a mapping, which would be the end
of the process where a file was cut short; a socket that is given such bytes says "bad address". Knows no checksums and
no sockets.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from emoe.core.errors import CheckpointError
from emoe.core.experts import ExpertId
from emoe.store.tensors import Extent


class Extents(Protocol):
    """What the store offers here."""

    folder: Path

    def extents(self, expert: ExpertId) -> tuple[Extent, ...]: ...


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Bytes that lie together in one file. `data`: the mapping's."""

    descriptor: int
    offset: int
    num_bytes: int
    data: memoryview


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    descriptor: int
    data: memoryview


class ExpertFiles:
    """Any thread may call; close it once nobody does."""

    def __init__(self, store: Extents) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._files: dict[str, _File] = {}
        self._runs: dict[ExpertId, list[Run]] = {}

    def runs(self, expert: ExpertId) -> list[Run]:
        """In the order of the expert's bytes. CheckpointError when a file cannot be opened, or is too short already."""
        runs = self._runs.get(expert)
        if runs is None:
            runs = self._runs[expert] = [self._run(*joined) for joined in _joined(self._store.extents(expert))]
        return runs

    def close(self) -> None:
        with self._lock:
            self._runs.clear()
            while self._files:
                os.close(self._files.popitem()[1].descriptor)

    def _run(self, name: str, offset: int, num_bytes: int) -> Run:
        file = self._open(name)
        data = file.data[offset : offset + num_bytes]
        if len(data) != num_bytes:
            raise CheckpointError(f"{self._store.folder / name}: ends before byte {offset + num_bytes}; fetch it again")
        return Run(descriptor=file.descriptor, offset=offset, num_bytes=num_bytes, data=data)

    def _open(self, name: str) -> _File:
        with self._lock:
            if name not in self._files:
                self._files[name] = _mapped(self._store.folder / name)
            return self._files[name]


def _joined(extents: Sequence[Extent]) -> list[tuple[str, int, int]]:
    """File, offset and bytes; what follows on itself in a file is one."""
    runs: list[tuple[str, int, int]] = []
    for extent in extents:
        name, offset, num_bytes = runs[-1] if runs else ("", 0, 0)
        if name == extent.file and offset + num_bytes == extent.offset:
            runs[-1] = (name, offset, num_bytes + extent.num_bytes)
        elif extent.num_bytes:
            runs.append((extent.file, extent.offset, extent.num_bytes))
    return runs


def _mapped(path: Path) -> _File:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            mapping = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        except (OSError, ValueError):
            os.close(descriptor)
            raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be opened ({error}); restore the file") from error
    # Read-ahead would go on past an expert's end, for bytes that nobody asked for.
    mapping.madvise(mmap.MADV_RANDOM)
    return _File(descriptor=descriptor, data=memoryview(mapping))


def is_in_memory(runs: list[Run]) -> bool:
    """By the first byte of each run and the last of all: a guess, and a wrong one costs only time.

    A file system that cannot tell (one that lives in memory, some over a network) is taken at its best."""
    last = runs[-1]
    return all(_is_cached(run.descriptor, run.offset) for run in runs) and _is_cached(
        last.descriptor, last.offset + last.num_bytes - 1
    )


def _is_cached(descriptor: int, offset: int) -> bool:
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False
    except OSError:
        return True
