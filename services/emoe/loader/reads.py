"""Experts in memory for as long as somebody sends them: read once, however many ask, and never more than a bound.

Stands between the store's blocking reads, done in a few threads, and the streams of PullExperts. An expert that is
being read or sent is shared; the last one to let go frees it. Knows neither gRPC nor in which order experts are asked
for.
"""

from __future__ import annotations

import asyncio
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from emoe.core.errors import CheckpointError, NotReadyError
from emoe.core.experts import ExpertId
from emoe.loader.news import News


class ExpertBytes(Protocol):
    """What the store offers here. Both may be called from any thread."""

    def read_into(self, expert: ExpertId, buffer: memoryview) -> None: ...

    def checksum(self, expert: ExpertId, buffer: memoryview) -> int: ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LoadedExpert:
    data: memoryview
    xxh3: int


@dataclasses.dataclass(eq=False)
class _Entry:
    future: asyncio.Future[LoadedExpert]
    num_leases: int = 0
    is_held: bool = True

    @property
    def has_failed(self) -> bool:
        return self.future.done() and (self.future.cancelled() or self.future.exception() is not None)


class Lease:
    """A claim on one expert's bytes. `release` it exactly once, whether or not they ever came."""

    def __init__(self, reads: ExpertReads, expert: ExpertId, entry: _Entry) -> None:
        self._reads = reads
        self._expert = expert
        self._entry = entry
        entry.num_leases += 1

    async def loaded(self) -> LoadedExpert:
        """CheckpointError when the bytes cannot be had; others may still wait for the same read."""
        return await asyncio.shield(self._entry.future)

    def release(self) -> None:
        self._entry.num_leases -= 1
        self._reads.drop_if_idle(self._expert, self._entry)


class ExpertReads:
    """At most `max_bytes` of experts are held, but always room for one. Event loop only."""

    def __init__(
        self, store: ExpertBytes, *, expert_bytes: int, max_bytes: int, num_threads: int, wait_seconds: float = 30.0
    ) -> None:
        self._store = store
        self._expert_bytes = expert_bytes
        self._max_experts = max(1, max_bytes // expert_bytes)
        self._wait_seconds = wait_seconds
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="expert-read")
        self._entries: dict[ExpertId, _Entry] = {}
        self._num_held = 0
        self._num_waiting = 0
        self._room = News()
        self._checksums: dict[ExpertId, int] = {}
        self.num_reads = 0

    async def acquire(self, expert: ExpertId) -> Lease:
        """Waits while the bound is reached; NotReadyError when nothing is let go in time."""
        self._num_waiting += 1
        try:
            async with asyncio.timeout(self._wait_seconds):
                while True:
                    seen = self._room.count
                    if lease := self._try_acquire(expert):
                        return lease
                    await self._room.after(seen)
        except TimeoutError:
            raise NotReadyError(
                f"{self._num_held} experts are being sent and none was finished in {self._wait_seconds:g} s; ask again"
            ) from None
        finally:
            self._num_waiting -= 1

    def checksum(self, expert: ExpertId) -> int | None:
        """The xxh3 that the expert was read with, from the first time on. From any thread."""
        return self._checksums.get(expert)

    def acquire_ahead(self, expert: ExpertId) -> Lease | None:
        """A lease if there is room that nobody waits for."""
        return None if self._num_waiting else self._try_acquire(expert)

    def drop_if_idle(self, expert: ExpertId, entry: _Entry) -> None:
        """Once read and let go by all, or failed; a failed read is tried again by whoever asks next."""
        idle = entry.future.done() and entry.num_leases == 0
        if (idle or entry.has_failed) and self._entries.get(expert) is entry:
            del self._entries[expert]
        if idle and entry.is_held:
            entry.is_held = False
            self._num_held -= 1
            self._room.announce()

    def close(self) -> None:
        """Blocks until the reads under way have ended."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _try_acquire(self, expert: ExpertId) -> Lease | None:
        entry = self._entries.get(expert)
        if entry is None:
            if self._num_held >= self._max_experts:
                return None
            entry = self._entries[expert] = self._start(expert)
        return Lease(self, expert, entry)

    def _start(self, expert: ExpertId) -> _Entry:
        self._num_held += 1
        self.num_reads += 1
        future = asyncio.get_running_loop().run_in_executor(self._threads, self._read, expert)
        entry = _Entry(future)
        future.add_done_callback(lambda _: self.drop_if_idle(expert, entry))
        return entry

    def _read(self, expert: ExpertId) -> LoadedExpert:
        buffer = memoryview(bytearray(self._expert_bytes))
        self._store.read_into(expert, buffer)
        xxh3 = self._store.checksum(expert, buffer)
        if self._checksums.setdefault(expert, xxh3) != xxh3:
            raise CheckpointError(
                f"{expert} reads differently than before: a file was changed or the disk "
                "fails; restore the checkpoint and restart the loader"
            )
        return LoadedExpert(data=buffer, xxh3=xxh3)
