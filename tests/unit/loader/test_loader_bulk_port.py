"""The bulk port without a loader: tickets, where it listens, and files that are not all in memory."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from emoe.core.errors import CheckpointError
from emoe.core.experts import ExpertId
from emoe.loader import tickets
from emoe.loader.bulk import listen_at
from emoe.loader.expert_files import ExpertFiles, is_in_memory
from emoe.loader.settings import LoaderSettings
from emoe.loader.tickets import TICKET_SECONDS, Tickets
from emoe.runtime.bulk_wire import BulkError, send_headed
from emoe.store.tensors import Extent
from emoe_operator.manifests.identity import BULK_PORT, GRPC_PORT

A, B = ExpertId(0, 0), ExpertId(0, 1)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_ticket_is_good_once() -> None:
    given = Tickets()
    ticket = given.issue()
    assert [given.redeem(ticket), given.redeem(ticket)] == [True, False]


def test_a_ticket_is_good_for_a_while() -> None:
    clock = Clock()
    given = Tickets(clock=clock)
    early, late = given.issue(), given.issue()
    clock.now += TICKET_SECONDS
    assert given.redeem(early)
    clock.now += 0.001
    assert not given.redeem(late)


def test_the_oldest_of_too_many_tickets_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets, "MAX_TICKETS", 2)
    given = Tickets()
    first, second, third = (given.issue() for _ in range(3))
    assert [given.redeem(ticket) for ticket in (first, second, third)] == [False, True, True]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"listen": "0.0.0.0:9000"}, ("0.0.0.0:9002", "0.0.0.0:0")),
        ({"listen": "[::]:9000"}, ("[::]:9002", "[::]:0")),
        ({"listen": "127.0.0.1:0"}, ("127.0.0.1:0",)),
        ({"listen": "127.0.0.1:65535"}, ("127.0.0.1:0",)),
        ({"listen": "unix:/run/loader"}, ()),
        ({"listen": "0.0.0.0:9000", "bulk_listen": "0.0.0.0:7"}, ("0.0.0.0:7",)),
        ({"bulk_listen": "off"}, ()),
    ],
    ids=["derived", "derived, IPv6", "any", "no port above", "unix", "given", "off"],
)
def test_where_the_bulk_port_is(given: dict[str, str], expected: tuple[str, ...]) -> None:
    assert LoaderSettings(model=Path("/model"), **given).bulk_addresses == expected  # type: ignore[arg-type]


def test_the_operator_opens_the_port_that_the_loader_takes() -> None:
    settings = LoaderSettings(model=Path("/model"), listen=f"0.0.0.0:{GRPC_PORT}")
    assert settings.bulk_addresses[0] == f"0.0.0.0:{BULK_PORT}"


def test_a_port_that_is_taken_gives_way_to_the_next() -> None:
    with listen_at(["127.0.0.1:0"]) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with listen_at([address, "127.0.0.1:0"]) as other:
            assert other.getsockname() != taken.getsockname()
        with pytest.raises(OSError, match=address):
            listen_at([address])


class Places:
    def __init__(self, folder: Path, extents: dict[ExpertId, tuple[Extent, ...]]) -> None:
        self.folder = folder
        self._extents = extents

    def extents(self, expert: ExpertId) -> tuple[Extent, ...]:
        return self._extents[expert]


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "one").write_bytes(bytes(range(100)))
    (tmp_path / "two").write_bytes(bytes(range(100, 200)))
    extents = {
        A: (Extent("a", "one", 10, 20), Extent("b", "one", 30, 5), Extent("c", "two", 0, 10), Extent("d", "one", 0, 1)),
        B: (Extent("e", "gone", 0, 1),),
    }
    return Places(tmp_path, extents)


def test_neighbours_in_a_file_are_one_run_and_the_order_stays(places: Places) -> None:
    files = ExpertFiles(places)
    runs = files.runs(A)
    assert [(run.offset, run.num_bytes) for run in runs] == [(10, 25), (0, 10), (0, 1)]
    assert is_in_memory(runs)
    assert b"".join(run.data for run in runs) == bytes([*range(10, 35), *range(100, 110), 0])
    files.close()


def test_a_file_that_is_gone_is_named(places: Places) -> None:
    with pytest.raises(CheckpointError, match="gone"):
        ExpertFiles(places).runs(B)


def test_a_file_cut_short_is_not_in_memory(places: Places) -> None:
    files = ExpertFiles(places)
    runs = files.runs(A)
    os.truncate(places.folder / "two", 0)
    assert not is_in_memory(runs)
    files.close()


def test_a_file_that_is_too_short_from_the_start_is_named(places: Places) -> None:
    os.truncate(places.folder / "two", 5)
    with pytest.raises(CheckpointError, match="two: ends before byte 10"):
        ExpertFiles(places).runs(A)


def test_bytes_that_are_cut_off_under_a_mapping_end_the_connection_and_not_the_process(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(bytes(64 * 1024))
    files = ExpertFiles(Places(tmp_path, {A: (Extent("a", "one", 0, 64 * 1024),)}))
    runs = files.runs(A)
    os.truncate(tmp_path / "one", 0)
    left, right = socket.socketpair()
    with left, right, pytest.raises(BulkError, match="address"):
        send_headed(left, b"", [run.data for run in runs])
    files.close()
