"""The loader's bulk port: takes connections with a ticket, and lets each ask for experts on a thread of its own.

Stands beside the gRPC server, which hands the tickets out. Connections are bounded, each wait on one has a deadline,
and one that says anything unexpected is closed. Plaintext, as the services' calls are. Knows no messages of gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from emoe.loader.streams import WRITE_SECONDS
from emoe.loader.tickets import Tickets
from emoe.runtime.bulk_wire import (
    ASK_BYTES,
    HELLO_BYTES,
    Ask,
    BulkError,
    Reply,
    Status,
    pack_reply,
    parse_ask,
    parse_hello,
    receive,
    send,
    set_deadlines,
)

MAX_CONNECTIONS = 256
HELLO_SECONDS = 5.0
IDLE_SECONDS = 60.0
"""Workers let an idle connection go sooner, so that it is never closed under a question."""
_BACKLOG = 128

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BulkDoor:
    """What a worker is told of the port, and where its tickets come from."""

    port: int
    tickets: Tickets
    socket_path: str = ""


class Sender(Protocol):
    def send(self, connection: socket.socket, ask: Ask) -> None: ...


class BulkPort:
    """`close` it at the end: threads under way end with their sockets."""

    def __init__(self, listener: socket.socket, *, tickets: Tickets, open_sender: Callable[[], Sender]) -> None:
        self._listener = listener
        self._tickets = tickets
        self._open_sender = open_sender
        self._threads = ThreadPoolExecutor(MAX_CONNECTIONS, thread_name_prefix="bulk")
        self._open: dict[asyncio.Future[None], socket.socket] = {}

    async def accept_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._listener)
            if len(self._open) >= MAX_CONNECTIONS:
                self._turn_away(connection)
                continue
            served = loop.run_in_executor(self._threads, self._serve, connection)
            self._open[served] = connection
            served.add_done_callback(self._forget)

    async def close(self) -> None:
        self._listener.close()
        for connection in self._open.values():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        if serving := tuple(self._open):
            await asyncio.wait(serving)
        self._threads.shutdown()

    def _forget(self, served: asyncio.Future[None]) -> None:
        self._open.pop(served).close()

    def _turn_away(self, connection: socket.socket) -> None:
        _log.warning("%d bulk connections are open; a further one is turned away", MAX_CONNECTIONS)
        with connection, contextlib.suppress(OSError):
            connection.setblocking(False)
            connection.send(pack_reply(Reply(status=Status.BUSY)))

    def _serve(self, connection: socket.socket) -> None:
        try:
            set_deadlines(connection, receive_seconds=HELLO_SECONDS, send_seconds=WRITE_SECONDS)
            if not self._tickets.redeem(parse_hello(receive(connection, HELLO_BYTES))):
                _log.warning("a bulk connection without a good ticket is refused")
                send(connection, pack_reply(Reply(status=Status.REFUSED)))
                return
            send(connection, pack_reply(Reply(status=Status.BYTES)))
            set_deadlines(connection, receive_seconds=IDLE_SECONDS, send_seconds=WRITE_SECONDS)
            sender = self._open_sender()
            while True:
                sender.send(connection, parse_ask(receive(connection, ASK_BYTES)))
        except BulkError as error:
            _log.debug("a bulk connection ends: %s", error)


def listen_at(addresses: Sequence[str]) -> socket.socket:
    """At the first that can be had; `host:port`, port 0 for any free one. OSError says why the last cannot."""
    for address in addresses[:-1]:
        try:
            return _listen_at(address)
        except OSError as error:
            _log.info("the bulk port goes elsewhere: %s", error)
    return _listen_at(addresses[-1])


def listen_on_node(path: Path) -> socket.socket:
    """At a Unix socket that any user may open: the ticket says who may go on."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {path}: {error}") from error
    listener.setblocking(False)
    return listener


def _listen_at(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        listener = socket.create_server((host, int(port)), family=_family_of(host), backlog=_BACKLOG)
    except (OSError, ValueError, OverflowError) as error:
        raise OSError(f"cannot listen on {address}: {error}") from error
    listener.setblocking(False)
    return listener


def _family_of(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
