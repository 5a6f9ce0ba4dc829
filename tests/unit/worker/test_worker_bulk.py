"""When a worker tries the bulk port, and when it leaves it alone."""

from __future__ import annotations

import logging
import socket

import pytest

from emoe.core.experts import ExpertId
from emoe.worker.bulk import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, BulkPulls
from emoe.worker.bulk_connection import Ticket

A = ExpertId(0, 0)


class Loader:
    """Hands out what it is given, and counts how often it is asked; its clock stands still between tests' steps."""

    def __init__(self, ticket: Ticket | None) -> None:
        self.ticket = ticket
        self.num_asked = 0
        self.now_seconds = 0.0
        self.pulls = BulkPulls(self._open, clock=lambda: self.now_seconds)

    def _open(self) -> Ticket | None:
        self.num_asked += 1
        return self.ticket

    def pull(self) -> bool:
        return self.pulls.pull(A, memoryview(bytearray(8)))


def nobody() -> Ticket:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return Ticket(host="127.0.0.1", port=closed.getsockname()[1], secret=bytes(32))


def test_a_port_that_refuses_is_tried_again_after_longer_and_longer_pauses(caplog: pytest.LogCaptureFixture) -> None:
    loader = Loader(nobody())
    pauses, pause = [], FIRST_PAUSE_SECONDS
    with caplog.at_level(logging.WARNING):
        for _ in range(9):
            assert not loader.pull()
            assert not loader.pull(), "left alone meanwhile"
            pauses.append(pause)
            loader.now_seconds += pause
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
    assert loader.num_asked == 9
    assert len(caplog.records) == 9
    assert pauses[-1] == LONGEST_PAUSE_SECONDS


def test_a_loader_without_a_port_is_asked_seldom_and_nobody_is_warned(caplog: pytest.LogCaptureFixture) -> None:
    loader = Loader(None)
    for _ in range(3):
        assert not loader.pull()
    loader.now_seconds += LONGEST_PAUSE_SECONDS
    assert not loader.pull()
    assert loader.num_asked == 2
    assert not caplog.records


def test_what_is_closed_asks_nobody() -> None:
    loader = Loader(nobody())
    loader.pulls.close()
    assert not loader.pull()
    assert loader.num_asked == 0
