"""What loader and worker say to each other on a bulk connection: fixed headers, and the bytes of experts after them.

The worker opens with a hello that holds its ticket from OpenBulk, and the loader replies to it. Then the worker asks
for one expert at a time, and the loader replies with its length, its xxh3 and its bytes; or, on a Unix socket, with the
places of the bytes in files whose descriptors come along. Whatever is not as it should be ends the connection. Knows
neither who asks nor what becomes of the bytes.
"""

from __future__ import annotations

import dataclasses
import enum
import socket
import struct
from collections.abc import Sequence

VERSION = 1
TICKET_BYTES = 32
MAX_PLACES = 64
"""Of one expert; a fused or split checkpoint has two to twelve."""

_MAGIC = b"EMOB"
_HELLO = struct.Struct(f"!4sHxx{TICKET_BYTES}s")
_ASK = struct.Struct("!4sHxxQII")
_REPLY = struct.Struct("!4sHHQQQ")
_PLACE = struct.Struct("!IxxxxQQ")
HELLO_BYTES, ASK_BYTES, REPLY_BYTES, PLACE_BYTES = _HELLO.size, _ASK.size, _REPLY.size, _PLACE.size

_TIMEVAL = struct.Struct("ll")


class BulkError(Exception):
    """The connection is of no more use: closed, silent for too long, or saying what cannot be."""


class Status(enum.IntEnum):
    BYTES = 0
    """`num_bytes` of them follow."""
    PLACES = 1
    """`num_bytes` of places follow, and with them the descriptors of files not named before."""
    ASK_BY_CALL = 2
    """PullExperts has it, or says why not. The connection stays."""
    REFUSED = 3
    """The ticket is unknown, used or too old."""
    BUSY = 4
    """There are as many connections as there may be."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    request_id: int
    layer: int
    index: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    status: Status
    request_id: int = 0
    num_bytes: int = 0
    xxh3: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A run of bytes of the file whose descriptor was passed as the `file`th of the connection, from 0."""

    file: int
    offset: int
    num_bytes: int


def pack_hello(ticket: bytes) -> bytes:
    return _HELLO.pack(_MAGIC, VERSION, ticket)


def parse_hello(data: bytes) -> bytes:
    """The ticket."""
    magic, version, ticket = _HELLO.unpack(data)
    _check(magic, version)
    return bytes(ticket)


def pack_ask(ask: Ask) -> bytes:
    return _ASK.pack(_MAGIC, VERSION, ask.request_id, ask.layer, ask.index)


def parse_ask(data: bytes) -> Ask:
    magic, version, request_id, layer, index = _ASK.unpack(data)
    _check(magic, version)
    return Ask(request_id=request_id, layer=layer, index=index)


def pack_reply(reply: Reply) -> bytes:
    return _REPLY.pack(_MAGIC, VERSION, reply.status, reply.request_id, reply.num_bytes, reply.xxh3)


def parse_reply(data: bytes | bytearray, *, request_id: int) -> Reply:
    """BulkError for a reply to something else."""
    magic, version, status, replied_id, num_bytes, xxh3 = _REPLY.unpack(data)
    _check(magic, version)
    if replied_id != request_id or status not in tuple(Status):
        raise BulkError(f"a reply of status {status} to request {replied_id} came for request {request_id}")
    return Reply(status=Status(status), request_id=replied_id, num_bytes=num_bytes, xxh3=xxh3)


def pack_places(places: Sequence[Place]) -> bytes:
    return b"".join(_PLACE.pack(place.file, place.offset, place.num_bytes) for place in places)


def parse_places(data: bytes) -> tuple[Place, ...]:
    return tuple(
        Place(file=file, offset=offset, num_bytes=num_bytes) for file, offset, num_bytes in _PLACE.iter_unpack(data)
    )


def set_deadlines(connection: socket.socket, *, receive_seconds: float, send_seconds: float) -> None:
    """In the kernel, so that calls block without the interpreter lock and without a poll before each."""
    connection.setblocking(True)
    for option, seconds in ((socket.SO_RCVTIMEO, receive_seconds), (socket.SO_SNDTIMEO, send_seconds)):
        whole = int(seconds)
        connection.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(whole, int((seconds - whole) * 1e6)))
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def receive_into(connection: socket.socket, view: memoryview) -> None:
    """All of `view`, or BulkError."""
    done = 0
    while done < len(view):
        try:
            received = connection.recv_into(view[done:], 0, socket.MSG_WAITALL)
        except BlockingIOError:
            raise BulkError(f"nothing came in time: {done} of {len(view)} bytes are here") from None
        except OSError as error:
            raise BulkError(f"broken: {error.strerror}") from error
        if not received:
            raise BulkError(f"closed by the other side after {done} of {len(view)} bytes")
        done += received


def receive_headed(connection: socket.socket, header: memoryview, view: memoryview) -> int:
    """All of `header`, and how many bytes of `view` came along: small answers cost one call of the system."""
    try:
        received = connection.recvmsg_into([header, view])[0]
    except BlockingIOError:
        raise BulkError("nothing came in time") from None
    except OSError as error:
        raise BulkError(f"broken: {error.strerror}") from error
    if not received:
        raise BulkError("closed by the other side")
    if received < len(header):
        receive_into(connection, header[received:])
    return max(0, received - len(header))


def receive(connection: socket.socket, num_bytes: int) -> bytes:
    data = bytearray(num_bytes)
    receive_into(connection, memoryview(data))
    return bytes(data)


def send(connection: socket.socket, data: bytes | memoryview) -> None:
    """All of it, or BulkError."""
    view = memoryview(data)
    while view:
        try:
            sent = connection.send(view, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            raise BulkError("the other side reads nothing") from None
        except OSError as error:
            raise BulkError(f"broken: {error.strerror}") from error
        view = view[sent:]


def send_headed(connection: socket.socket, header: bytes, data: Sequence[memoryview]) -> None:
    """Header and data in one call of the system, where the socket takes them at once."""
    pieces = [memoryview(header), *data]
    try:
        sent = connection.sendmsg(pieces, (), socket.MSG_NOSIGNAL)
    except BlockingIOError:
        raise BulkError("the other side reads nothing") from None
    except OSError as error:
        raise BulkError(f"broken: {error.strerror}") from error
    for piece in pieces:
        send(connection, piece[sent:])
        sent = max(0, sent - len(piece))


def send_with_files(connection: socket.socket, data: bytes, descriptors: Sequence[int]) -> None:
    """On a Unix socket; the other side gets descriptors of its own."""
    try:
        sent = socket.send_fds(connection, [data], list(descriptors), socket.MSG_NOSIGNAL)
    except BlockingIOError:
        raise BulkError("the other side reads nothing") from None
    except OSError as error:
        raise BulkError(f"broken: {error.strerror}") from error
    send(connection, data[sent:])


def receive_with_files(connection: socket.socket, header: memoryview) -> list[int]:
    """All of `header`, and the descriptors that came along, which are the caller's to close."""
    try:
        data, descriptors, _, _ = socket.recv_fds(connection, len(header), MAX_PLACES, socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        raise BulkError("nothing came in time") from None
    except OSError as error:
        raise BulkError(f"broken: {error.strerror}") from error
    if not data:
        raise BulkError("closed by the other side")
    header[: len(data)] = data
    receive_into(connection, header[len(data) :])
    return descriptors


def _check(magic: bytes, version: int) -> None:
    if magic != _MAGIC or version != VERSION:
        raise BulkError(f"{magic!r}, version {version}, is not what is spoken here")
