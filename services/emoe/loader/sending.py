"""How one expert leaves in bulk: from the page cache, or from memory where it has to be read. A worker on this node
gets the places of its bytes instead, and reads them itself.

An expert is read for its checksum the first time, and again when it has left the page cache: through the shared reads,
so that ten who ask at once cause one read. In between the kernel takes it from the file's pages, mapped here and never
touched, into the socket: one copy, as of a plain send. (sendfile makes none, and took half as much processor time again
on both ends together: it passes a page at a time.) Called on the threads of bulk connections; knows no tickets.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import socket
from collections.abc import Iterator
from typing import Protocol

from emoe.core.errors import EmoeError, NotReadyError
from emoe.core.experts import ExpertGrid, ExpertId
from emoe.loader.expert_files import ExpertFiles, Run, is_in_memory
from emoe.loader.reads import ExpertReads, Lease, LoadedExpert
from emoe.runtime.bulk_wire import (
    MAX_PLACES,
    Ask,
    BulkError,
    Place,
    Reply,
    Status,
    pack_places,
    pack_reply,
    send,
    send_headed,
    send_with_files,
)

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BulkSource:
    """What there is to send. `loop`: the one that the shared reads belong to."""

    grid: ExpertGrid
    reads: ExpertReads
    files: ExpertFiles
    loop: asyncio.AbstractEventLoop

    def has(self, expert: ExpertId) -> bool:
        return expert.layer in self.grid.moe_layers and expert.index < self.grid.rule.num_experts

    def are_whole(self, runs: list[Run]) -> bool:
        """Whether these bytes, end to end, are the expert: not where a read makes something of them."""
        return sum(run.num_bytes for run in runs) == self.grid.expert_bytes

    @contextlib.contextmanager
    def read(self, expert: ExpertId) -> Iterator[LoadedExpert]:
        lease, loaded = asyncio.run_coroutine_threadsafe(self._borrow(expert), self.loop).result()
        try:
            yield loaded
        finally:
            self.loop.call_soon_threadsafe(lease.release)

    async def _borrow(self, expert: ExpertId) -> tuple[Lease, LoadedExpert]:
        lease = await self.reads.acquire(expert)
        try:
            return lease, await lease.loaded()
        except BaseException:
            lease.release()
            raise


class Way(Protocol):
    """How an expert that the model has leaves. EmoeError or OSError, with nothing sent, where it cannot."""

    def send(self, connection: socket.socket, ask: Ask, expert: ExpertId) -> None: ...


class ExpertSender:
    """Answers the asks of one connection in one way, or says to ask by a call."""

    def __init__(self, source: BulkSource, way: Way) -> None:
        self._source = source
        self._way = way

    def send(self, connection: socket.socket, ask: Ask) -> None:
        """The reply and what follows it. BulkError when the connection is of no more use."""
        expert = ExpertId(ask.layer, ask.index)
        try:
            if not self._source.has(expert):
                raise BulkError(f"{expert} was asked for, which the model has not")
            self._way.send(connection, ask, expert)
        except (EmoeError, OSError) as error:
            # The call, which the worker makes now, says it with a status.
            _log.debug("%s is not sent in bulk: %s", expert, error)
            send(connection, pack_reply(Reply(status=Status.ASK_BY_CALL, request_id=ask.request_id)))


def open_byte_sender(source: BulkSource) -> ExpertSender:
    return ExpertSender(source, _Bytes(source))


def open_place_sender(source: BulkSource) -> ExpertSender:
    return ExpertSender(source, _Places(source))


class _Bytes:
    """Sends bytes."""

    def __init__(self, source: BulkSource) -> None:
        self._source = source

    def send(self, connection: socket.socket, ask: Ask, expert: ExpertId) -> None:
        xxh3 = self._source.reads.checksum(expert)
        if xxh3 is None or not self._send_cached(connection, ask, expert, xxh3):
            self._send_read(connection, ask, expert)

    def _send_cached(self, connection: socket.socket, ask: Ask, expert: ExpertId, xxh3: int) -> bool:
        """False, with nothing sent, when it is not in the page cache."""
        runs = self._source.files.runs(expert)
        if not self._source.are_whole(runs) or not is_in_memory(runs):
            return False
        send_headed(connection, self._header(ask, xxh3), [run.data for run in runs])
        return True

    def _send_read(self, connection: socket.socket, ask: Ask, expert: ExpertId) -> None:
        with self._source.read(expert) as loaded:
            send_headed(connection, self._header(ask, loaded.xxh3), [loaded.data])

    def _header(self, ask: Ask, xxh3: int) -> bytes:
        num_bytes = self._source.grid.expert_bytes
        return pack_reply(Reply(status=Status.BYTES, request_id=ask.request_id, num_bytes=num_bytes, xxh3=xxh3))


class _Places:
    """Says where the bytes lie, and passes the files' descriptors, each once a connection."""

    def __init__(self, source: BulkSource) -> None:
        self._source = source
        self._numbers: dict[int, int] = {}

    def send(self, connection: socket.socket, ask: Ask, expert: ExpertId) -> None:
        xxh3, runs = self._checksum(expert), self._source.files.runs(expert)
        if not self._source.are_whole(runs) or len(runs) > MAX_PLACES:
            raise NotReadyError(f"{expert} is more than runs of bytes in files")
        new = [one for one in dict.fromkeys(run.descriptor for run in runs) if one not in self._numbers]
        self._numbers.update({descriptor: len(self._numbers) + at for at, descriptor in enumerate(new)})
        data = pack_places(
            [Place(file=self._numbers[run.descriptor], offset=run.offset, num_bytes=run.num_bytes) for run in runs]
        )
        reply = Reply(status=Status.PLACES, request_id=ask.request_id, num_bytes=len(data), xxh3=xxh3)
        send_with_files(connection, pack_reply(reply) + data, new)

    def _checksum(self, expert: ExpertId) -> int:
        """Known from the first read, which is made for it."""
        known = self._source.reads.checksum(expert)
        if known is not None:
            return known
        with self._source.read(expert) as loaded:
            return loaded.xxh3
