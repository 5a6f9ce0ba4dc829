"""The ways in which experts come to this process: plain TCP, the loader, the files themselves.

Each reader of a repeat is a thread that takes one expert after the other, as the threads of a worker do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from emoe.bench import transfer_plain
from emoe.bench.failures import BenchmarkError
from emoe.bench.transfer_rows import Moved
from emoe.core.errors import EmoeError
from emoe.core.experts import ExpertId
from emoe.worker.sources import ExpertSource


class Reader(Protocol):
    def read_into(self, expert: ExpertId, buffer: memoryview) -> None: ...

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """`open_reader` is told how many experts it will be asked for; `sender_pid`: of the other end, if there is one."""

    name: str
    connections: int
    open_reader: Callable[[int], Reader]
    sender_pid: int | None


class PlainReader:
    """A connection of its own. `ordered_at_once`: it gets all that it will be asked for as one stream."""

    def __init__(self, port: int, *, num_experts: int, expert_bytes: int, ordered_at_once: bool) -> None:
        self._connection = transfer_plain.connect(port)
        self._expert_bytes = expert_bytes
        self._num_at_once = num_experts if ordered_at_once else 1
        self._num_coming = 0

    def read_into(self, _expert: ExpertId, buffer: memoryview) -> None:
        if not self._num_coming:
            self._num_coming = self._num_at_once
            transfer_plain.order(self._connection, num_messages=self._num_at_once, num_bytes=self._expert_bytes)
        transfer_plain.receive(self._connection, buffer)
        self._num_coming -= 1

    def close(self) -> None:
        self._connection.close()


class SharedReader:
    """A worker's source, which all its threads share and nobody closes between repeats."""

    def __init__(self, source: ExpertSource) -> None:
        self.read_into = source.read_into

    def close(self) -> None:
        """The source stays."""


def move(way: Way, experts: Sequence[ExpertId], *, expert_bytes: int) -> Moved:
    """Every expert once, dealt out to the readers."""
    shares = [experts[reader :: way.connections] for reader in range(way.connections)]
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(contextlib.closing(way.open_reader(len(share)))) for share in shares]
        takings = [_Taking(reader, share, expert_bytes) for reader, share in zip(readers, shares, strict=True)]
        processor_seconds, started = _processor_seconds(way), time.perf_counter()
        for taking in takings:
            taking.start()
        for taking in takings:
            taking.join()
        wall_seconds, used_seconds = time.perf_counter() - started, _processor_seconds(way) - processor_seconds
    for taking in takings:
        if taking.error is not None:
            raise BenchmarkError(f"{way.name}: {taking.error}") from taking.error
    return Moved(
        num_bytes=len(experts) * expert_bytes,
        wall_seconds=wall_seconds,
        processor_seconds=used_seconds,
        expert_seconds=statistics.median(seconds for taking in takings for seconds in taking.expert_seconds),
    )


class _Taking(threading.Thread):
    def __init__(self, reader: Reader, experts: Sequence[ExpertId], expert_bytes: int) -> None:
        super().__init__(daemon=True)
        self.expert_seconds: list[float] = []
        self.error: Exception | None = None
        self._reader = reader
        self._experts = experts
        # Written once, so that no page of it is met for the first time while the clock runs.
        self._buffer = memoryview(bytearray(b"\1" * expert_bytes))

    def run(self) -> None:
        try:
            for expert in self._experts:
                started = time.perf_counter()
                self._reader.read_into(expert, self._buffer)
                self.expert_seconds.append(time.perf_counter() - started)
        except (OSError, EmoeError) as error:
            self.error = error


def _processor_seconds(way: Way) -> float:
    """Of both ends, so far. Linux has a clock of each process's processor time (see clock_getcpuclockid)."""
    own = time.process_time()
    return own if way.sender_pid is None else own + time.clock_gettime((~way.sender_pid << 3) | 2)
