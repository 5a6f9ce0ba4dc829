"""The open weight files of a checkpoint, and positioned reads from them.

Every byte of a tensor that leaves the disk passes here: exactly the ranges asked for, straight into the caller's
buffer, with the interpreter lock released. Any number of threads may read at once. Does not know experts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from emoe.core.errors import CheckpointError
from emoe.store.tensors import Extent, FileStat


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadTotals:
    """What one or many reads asked of the kernel."""

    num_bytes_asked: int = 0
    num_reads: int = 0

    def __add__(self, other: ReadTotals) -> ReadTotals:
        return ReadTotals(
            num_bytes_asked=self.num_bytes_asked + other.num_bytes_asked, num_reads=self.num_reads + other.num_reads
        )


class WeightFiles:
    """Open until `close` and the end of reads that are under way then: no descriptor is reused under a reader."""

    def __init__(self, folder: Path, names: Iterable[str], *, named_by: Callable[[str], str]) -> None:
        """`named_by` says, for a file that is missing, who wants it."""
        self._folder = folder
        self._lock = threading.Lock()
        self._num_reading = 0
        self._closed = False
        self._descriptors: dict[str, int] = {}
        self._stats: dict[str, FileStat] = {}
        try:
            for name in names:
                self._open(name, named_by)
        except BaseException:
            self.close()
            raise

    @property
    def stats(self) -> Mapping[str, FileStat]:
        """As the files were when they were opened."""
        return self._stats

    def read_at(self, name: str, num_bytes: int, offset: int) -> bytes:
        """Fewer bytes at the end of the file."""
        with self._reading():
            try:
                return os.pread(self._descriptors[name], num_bytes, offset)
            except OSError as error:
                raise CheckpointError(
                    f"{self._folder / name}: cannot be read ({error.strerror}); check the disk"
                ) from error

    def read(self, extents: Sequence[Extent], buffer: memoryview) -> ReadTotals:
        """Extent after extent into `buffer`, which they fill. Neighbours in a file are read in one call."""
        totals = ReadTotals()
        with self._reading():
            for run in _runs(extents, buffer):
                totals += self._read_run(run)
        return totals

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._close_when_idle()

    def _open(self, name: str, named_by: Callable[[str], str]) -> None:
        path = self._folder / name
        try:
            if not path.is_file():
                raise CheckpointError(f"{path}: missing, though {named_by(name)}; fetch it into the folder")
            self._descriptors[name] = descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            # Read-ahead would go on past an expert's end, for bytes that nobody asked for.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be opened ({error.strerror}); check its permissions") from error
        stat = os.fstat(descriptor)
        self._stats[name] = FileStat(name, stat.st_size, stat.st_mtime_ns)

    def _read_run(self, run: list[tuple[Extent, memoryview]]) -> ReadTotals:
        first = run[0][0]
        path, descriptor, offset = self._folder / first.file, self._descriptors[first.file], first.offset
        views = [view for _, view in run]
        totals = ReadTotals()
        while views:
            try:
                done = os.preadv(descriptor, views, offset)
            except OSError as error:
                raise CheckpointError(
                    f"{path}: {_keys(run)} cannot be read ({error.strerror}); check the disk"
                ) from error
            if done == 0:
                raise CheckpointError(
                    f"{path}: truncated while in use: it ends at byte {offset}, inside {_keys(run)}; fetch it again"
                )
            totals += ReadTotals(num_bytes_asked=sum(map(len, views)), num_reads=1)
            offset += done
            views = unfilled(views, done)
        return totals

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise CheckpointError(f"{self._folder}: this store is closed; open it again")
            self._num_reading += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_reading -= 1
                self._close_when_idle()

    def _close_when_idle(self) -> None:
        if self._closed and self._num_reading == 0:
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])


def device_bytes_read() -> int | None:
    """What this whole process has had fetched from storage so far; None where the system does not tell."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    counts = dict(line.split(": ", 1) for line in lines)
    return int(counts["read_bytes"]) if "read_bytes" in counts else None


def unfilled(views: list[memoryview], done: int) -> list[memoryview]:
    """What a read that filled `done` bytes left to fill."""
    for position, view in enumerate(views):
        if done < len(view):
            return [view[done:], *views[position + 1 :]]
        done -= len(view)
    return []


def _runs(extents: Sequence[Extent], buffer: memoryview) -> Iterator[list[tuple[Extent, memoryview]]]:
    placed: list[tuple[Extent, memoryview]] = []
    position = 0
    for extent in extents:
        if extent.num_bytes:
            placed.append((extent, buffer[position : position + extent.num_bytes]))
        position += extent.num_bytes
    run: list[tuple[Extent, memoryview]] = []
    for extent, view in sorted(placed, key=lambda piece: (piece[0].file, piece[0].offset)):
        if run and (extent.file, extent.offset) != (run[-1][0].file, run[-1][0].offset + run[-1][0].num_bytes):
            yield run
            run = []
        run.append((extent, view))
    if run:
        yield run


def _keys(run: list[tuple[Extent, memoryview]]) -> str:
    return ", ".join(extent.key for extent, _ in run)
