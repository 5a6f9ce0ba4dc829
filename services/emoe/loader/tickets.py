"""Tickets for the bulk port: given out over gRPC, good for one connection each and for a short time.

Stands between OpenBulk and the bulk port, so that nobody reads weights there who was not let in by the service. Holds
no more than a bound: the oldest gives way. Knows neither gRPC nor sockets.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable

from emoe.runtime.bulk_wire import TICKET_BYTES

TICKET_SECONDS = 10.0
MAX_TICKETS = 1024


class Tickets:
    """Any thread may call."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._good_until: dict[bytes, float] = {}

    def issue(self) -> bytes:
        ticket, now = secrets.token_bytes(TICKET_BYTES), self._clock()
        with self._lock:
            while len(self._good_until) >= MAX_TICKETS:
                del self._good_until[next(iter(self._good_until))]
            self._good_until[ticket] = now + TICKET_SECONDS
        return ticket

    def redeem(self, ticket: bytes) -> bool:
        """True once at most."""
        with self._lock:
            good_until = self._good_until.pop(ticket, None)
        return good_until is not None and self._clock() <= good_until
