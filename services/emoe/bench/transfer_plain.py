"""The plain TCP copy that transfers are measured against: sendall on one side, recv_into on the other, nothing else.

The sender is a process of its own (`python -m emoe.bench.transfer_plain`), asked over its standard input for the bytes
that it holds; then each connection asks for so many messages of so many bytes, as often as it likes.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading

ORDER = struct.Struct("!QQ")
WAIT_SECONDS = 60.0
_MIN_POOL_BYTES = 128 * 1024 * 1024
"""More than a processor's cache holds, as the experts of a model are."""


def order(connection: socket.socket, *, num_messages: int, num_bytes: int) -> None:
    connection.sendall(ORDER.pack(num_messages, num_bytes))


def receive(connection: socket.socket, view: memoryview) -> None:
    done = 0
    while done < len(view):
        received = connection.recv_into(view[done:], 0, socket.MSG_WAITALL)
        if not received:
            raise ConnectionError("the plain sender has closed the connection")
        done += received


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS)
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _serve(connection: socket.socket, pool: memoryview) -> None:
    offset = 0
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while len(asked := connection.recv(ORDER.size, socket.MSG_WAITALL)) == ORDER.size:
            num_messages, num_bytes = ORDER.unpack(asked)
            for _ in range(num_messages):
                offset = offset if offset + num_bytes <= len(pool) else 0
                connection.sendall(pool[offset : offset + num_bytes])
                offset += num_bytes


def main() -> None:
    pool = memoryview(os.urandom(1 << 20) * (_MIN_POOL_BYTES >> 20))
    listener = socket.create_server(("127.0.0.1", 0))
    sys.stdin.readline()
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    # Ended with its standard input, by its parent.
    threading.Thread(target=_accept_forever, args=(listener, pool), daemon=True).start()
    sys.stdin.read()


def _accept_forever(listener: socket.socket, pool: memoryview) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_serve, args=(connection, pool), daemon=True).start()


if __name__ == "__main__":
    main()
