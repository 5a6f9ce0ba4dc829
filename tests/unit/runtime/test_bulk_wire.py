"""The bulk connection's headers: what is packed is parsed again, and nothing else is."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emoe.runtime.bulk_wire import (
    HELLO_BYTES,
    REPLY_BYTES,
    TICKET_BYTES,
    Ask,
    BulkError,
    Reply,
    Status,
    pack_ask,
    pack_hello,
    pack_reply,
    parse_ask,
    parse_hello,
    parse_reply,
    receive_headed,
    receive_into,
    send_headed,
    set_deadlines,
)

UINT64 = st.integers(0, 2**64 - 1)
UINT32 = st.integers(0, 2**32 - 1)
PAYLOAD = bytes(range(256)) * 20_000
"""More than a socket holds."""


@given(st.binary(min_size=TICKET_BYTES, max_size=TICKET_BYTES))
def test_a_hello_carries_its_ticket(ticket: bytes) -> None:
    assert parse_hello(pack_hello(ticket)) == ticket


@given(UINT64, UINT32, UINT32)
def test_an_ask_is_parsed_as_it_was_packed(request_id: int, layer: int, index: int) -> None:
    ask = Ask(request_id=request_id, layer=layer, index=index)
    assert parse_ask(pack_ask(ask)) == ask


@given(st.sampled_from(Status), UINT64, UINT64, UINT64)
def test_a_reply_is_parsed_as_it_was_packed(status: Status, request_id: int, num_bytes: int, xxh3: int) -> None:
    reply = Reply(status=status, request_id=request_id, num_bytes=num_bytes, xxh3=xxh3)
    assert parse_reply(pack_reply(reply), request_id=request_id) == reply


def test_a_reply_to_another_request_is_refused() -> None:
    with pytest.raises(BulkError, match="request 7"):
        parse_reply(pack_reply(Reply(status=Status.BYTES, request_id=6)), request_id=7)


@given(st.binary(min_size=REPLY_BYTES, max_size=REPLY_BYTES))
def test_noise_is_no_reply(noise: bytes) -> None:
    with pytest.raises(BulkError):
        parse_reply(b"\0" + noise[1:], request_id=0)


def test_another_version_is_refused() -> None:
    hello = bytearray(pack_hello(bytes(TICKET_BYTES)))
    hello[5] += 1
    with pytest.raises(BulkError, match="version 2"):
        parse_hello(bytes(hello))
    assert len(hello) == HELLO_BYTES


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


@pytest.mark.parametrize("num_first", [0, 1, 5000], ids=str)
def test_a_header_and_what_follows_come_whole(pair: tuple[socket.socket, socket.socket], num_first: int) -> None:
    header, buffer = bytearray(REPLY_BYTES), bytearray(len(PAYLOAD))
    view = memoryview(buffer)
    reply = pack_reply(Reply(status=Status.BYTES, num_bytes=len(PAYLOAD)))
    pieces = [memoryview(PAYLOAD)[:100], memoryview(PAYLOAD)[100:]]
    sending = threading.Thread(target=send_headed, args=(pair[0], reply, pieces))
    sending.start()
    num_here = receive_headed(pair[1], memoryview(header), view[:num_first])
    receive_into(pair[1], view[num_here:])
    sending.join()
    assert num_here <= num_first
    assert (bytes(header), bytes(buffer)) == (reply, PAYLOAD)


def test_silence_ends_at_the_deadline(pair: tuple[socket.socket, socket.socket]) -> None:
    set_deadlines(pair[1], receive_seconds=0.01, send_seconds=0.01)
    with pytest.raises(BulkError, match="in time"):
        receive_into(pair[1], memoryview(bytearray(1)))


def test_a_reader_that_stops_ends_the_sender_at_the_deadline(pair: tuple[socket.socket, socket.socket]) -> None:
    set_deadlines(pair[0], receive_seconds=0.01, send_seconds=0.01)
    with pytest.raises(BulkError, match="reads nothing"):
        send_headed(pair[0], bytes(REPLY_BYTES), [memoryview(PAYLOAD)])


def test_a_peer_that_is_gone_is_told_of(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].send(b"ab")
    pair[0].close()
    with pytest.raises(BulkError, match="2 of 3"):
        receive_into(pair[1], memoryview(bytearray(3)))
