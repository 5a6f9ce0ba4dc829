"""Experts pulled over the loader's bulk port: plain sockets, one expert at a time on each, one for each reader.

Stands before the calls of `loader_source`, which are the way whenever this one is not: no port, a refusal, a broken
connection, a checksum that is wrong. After a failure nobody tries for a while, longer each time. Any thread may call.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from emoe.core.experts import ExpertId
from emoe.runtime.bulk_wire import BulkError
from emoe.worker.bulk_connection import BulkConnection, Ticket, UnusedError

MAX_IDLE_SECONDS = 20.0
FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 300.0

log = logging.getLogger(__name__)


class BulkPulls:
    def __init__(
        self, open_ticket: Callable[[], Ticket | None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`open_ticket` asks the loader; None where it has no bulk port. What it raises passes through `pull`."""
        self._open_ticket = open_ticket
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: list[BulkConnection] = []
        self._busy: set[BulkConnection] = set()
        self._closed = False
        self._pause_seconds = 0.0
        self._not_before_seconds = 0.0
        self.num_pulled = 0

    def pull(self, expert: ExpertId, buffer: memoryview) -> bool:
        """False: it did not come this way; `buffer` then means nothing, and the call is to be made."""
        if self._closed or self._clock() < self._not_before_seconds:
            return False
        try:
            try:
                return self._pull(expert, buffer, self._take())
            except UnusedError:
                self._drop_idle()
                return self._pull(expert, buffer, None)
        except (BulkError, OSError) as error:
            self._fail(str(error))
            return False

    def close(self) -> None:
        """Whoever waits on a socket stops waiting."""
        with self._lock:
            self._closed = True
            for connection in self._busy:
                with contextlib.suppress(OSError):
                    connection.shut_down()
        self._drop_idle()

    def _pull(self, expert: ExpertId, buffer: memoryview, kept: BulkConnection | None) -> bool:
        connection = kept or self._connect()
        if connection is None:
            return False
        try:
            came = connection.pull(expert, buffer)
        except BaseException:
            self._drop(connection)
            raise
        self._give_back(connection, num_pulled=int(came))
        return came

    def _take(self) -> BulkConnection | None:
        """One that was used before, the latest first: then those that are too many grow old."""
        with self._lock:
            if not self._idle:
                return None
            if self._clock() - self._idle[-1].used_at_seconds <= MAX_IDLE_SECONDS:
                self._busy.add(self._idle[-1])
                return self._idle.pop()
        self._drop_idle()
        return None

    def _connect(self) -> BulkConnection | None:
        ticket = self._open_ticket()
        if ticket is None:
            self._rest(LONGEST_PAUSE_SECONDS)
            return None
        connection = BulkConnection.open(ticket)
        with self._lock:
            self._busy.add(connection)
        return connection

    def _give_back(self, connection: BulkConnection, *, num_pulled: int) -> None:
        connection.used_at_seconds = self._clock()
        with self._lock:
            self._busy.discard(connection)
            self.num_pulled += num_pulled
            if num_pulled:
                self._pause_seconds = 0.0
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def _drop(self, connection: BulkConnection) -> None:
        with self._lock:
            self._busy.discard(connection)
        connection.close()

    def _drop_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _fail(self, why: str) -> None:
        """Told once, however many readers find it out."""
        pause_seconds = min(max(FIRST_PAUSE_SECONDS, 2 * self._pause_seconds), LONGEST_PAUSE_SECONDS)
        if self._rest(pause_seconds):
            log.warning("the loader's bulk port: %s; experts come by calls for %g s", why, pause_seconds)

    def _rest(self, pause_seconds: float) -> bool:
        with self._lock:
            now = self._clock()
            if self._closed or now < self._not_before_seconds:
                return False
            self._pause_seconds, self._not_before_seconds = pause_seconds, now + pause_seconds
        self._drop_idle()
        return True
