"""One connection to the loader's bulk port, or to its Unix socket on this node: how it is made, how an expert comes.

Over the port bytes come; on the node the places of bytes in files whose descriptors the loader passes, and they are
read here. Either way their xxh3 must be what the loader says. Knows no retries.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
from pathlib import Path

import xxhash

from emoe.core.experts import ExpertId
from emoe.runtime.bulk_wire import (
    MAX_PLACES,
    PLACE_BYTES,
    REPLY_BYTES,
    Ask,
    BulkError,
    Reply,
    Status,
    pack_ask,
    pack_hello,
    parse_places,
    parse_reply,
    receive,
    receive_headed,
    receive_into,
    receive_with_files,
    send,
    set_deadlines,
)

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 30.0
"""For one expert, from the question to the last byte or a part of it that large."""
CHUNK_BYTES = 1 << 20
"""Hashed while it is in the processor's cache."""

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ticket:
    """Where a connection may be made, and what lets it in. Port 0: by the Unix socket alone."""

    host: str
    port: int
    secret: bytes
    socket_path: str = ""


class UnusedError(BulkError):
    """A connection kept from before, gone before it said anything: no news about the loader now."""


@dataclasses.dataclass(eq=False)
class BulkConnection:
    """One thread at a time; only `shut_down` may be called beside it."""

    socket: socket.socket
    used_at_seconds: float = 0.0
    num_asked: int = 0
    descriptors: list[int] = dataclasses.field(default_factory=list)
    """On the loader's node: of the files that it passed."""

    @classmethod
    def open(cls, ticket: Ticket) -> BulkConnection:
        """BulkError or OSError when there is no way, or nobody is let in."""
        peer = _connected(ticket)
        try:
            set_deadlines(peer, receive_seconds=ANSWER_SECONDS, send_seconds=CONNECT_SECONDS)
            _greet(peer, ticket)
        except BaseException:
            peer.close()
            raise
        return cls(peer)

    def pull(self, expert: ExpertId, buffer: memoryview) -> bool:
        """False: the loader says to ask by a call. After an error the connection is to be closed."""
        is_kept, self.num_asked = self.num_asked > 0, self.num_asked + 1
        header = bytearray(REPLY_BYTES)
        try:
            send(self.socket, pack_ask(Ask(request_id=self.num_asked, layer=expert.layer, index=expert.index)))
            num_here = _receive_header(self, memoryview(header), buffer)
        except BulkError as error:
            if is_kept:
                raise UnusedError(str(error)) from error
            raise
        reply = parse_reply(header, request_id=self.num_asked)
        if reply.status is Status.ASK_BY_CALL:
            return False
        if self._receive(reply, buffer, num_here=num_here) != reply.xxh3:
            raise BulkError(f"{expert} arrived damaged")
        return True

    def shut_down(self) -> None:
        """Whoever waits on the socket stops waiting."""
        self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.socket.close()
        while self.descriptors:
            os.close(self.descriptors.pop())

    def _receive(self, reply: Reply, buffer: memoryview, *, num_here: int) -> int:
        if reply.status is Status.PLACES and self.descriptors:
            return _read_places(self, reply, buffer)
        if reply.status is Status.BYTES and reply.num_bytes == len(buffer):
            return _receive(self.socket, buffer, num_here=num_here)
        raise BulkError(f"{reply.num_bytes} bytes were sent of an expert, which has {len(buffer)}")


def _receive_header(connection: BulkConnection, header: memoryview, buffer: memoryview) -> int:
    """How many bytes of the expert came along."""
    if connection.socket.family != socket.AF_UNIX:
        return receive_headed(connection.socket, header, buffer[:CHUNK_BYTES])
    connection.descriptors += receive_with_files(connection.socket, header)
    return 0


def _receive(peer: socket.socket, buffer: memoryview, *, num_here: int) -> int:
    """The xxh3 of all that came. The first `num_here` bytes are in place."""
    hasher = xxhash.xxh3_64()
    for offset in range(0, len(buffer), CHUNK_BYTES):
        chunk = buffer[offset : offset + CHUNK_BYTES]
        receive_into(peer, chunk[num_here:])
        num_here = 0
        hasher.update(chunk)
    return hasher.intdigest()


def _read_places(connection: BulkConnection, reply: Reply, buffer: memoryview) -> int:
    """The xxh3 of what was read from the files that the loader passed."""
    if reply.num_bytes > MAX_PLACES * PLACE_BYTES or reply.num_bytes % PLACE_BYTES:
        raise BulkError(f"{reply.num_bytes} bytes are no list of places")
    places = parse_places(receive(connection.socket, reply.num_bytes))
    if sum(place.num_bytes for place in places) != len(buffer):
        raise BulkError(f"the places named have not the {len(buffer)} bytes of an expert")
    hasher, done = xxhash.xxh3_64(), 0
    for place in places:
        if place.file >= len(connection.descriptors):
            raise BulkError(f"file {place.file} is named, which was never passed")
        view = buffer[done : done + place.num_bytes]
        _read_place(connection.descriptors[place.file], view, place.offset)
        hasher.update(view)
        done += place.num_bytes
    return hasher.intdigest()


def _read_place(descriptor: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        num_read = os.preadv(descriptor, [view[done:]], offset + done)
        if not num_read:
            raise BulkError(f"a file was cut short while in use, at byte {offset + done}")
        done += num_read


def _connected(ticket: Ticket) -> socket.socket:
    """On the loader's node by its Unix socket, where that is seen; OSError when there is no way."""
    if is_seen(ticket.socket_path):
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        peer.settimeout(CONNECT_SECONDS)
        try:
            peer.connect(ticket.socket_path)
        except OSError as error:
            peer.close()
            log.info("%s is here, but does not answer (%s)", ticket.socket_path, error.strerror)
        else:
            return peer
    if not ticket.port:
        raise BulkError("it has no port for this worker")
    return socket.create_connection((ticket.host, ticket.port), timeout=CONNECT_SECONDS)


def is_seen(socket_path: str) -> bool:
    try:
        return bool(socket_path) and Path(socket_path).is_socket()
    except OSError:
        return False


def _greet(peer: socket.socket, ticket: Ticket) -> None:
    send(peer, pack_hello(ticket.secret))
    reply = parse_reply(receive(peer, REPLY_BYTES), request_id=0)
    if reply.status is not Status.BYTES:
        raise BulkError(f"it says {reply.status.name}")
