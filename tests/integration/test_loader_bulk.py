"""The bulk port of a real loader: who is let in, what comes, and what a worker does when it does not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from loader_clients import client, running
from loader_models import ALL_EXPERTS
from loader_source import TIMEOUT_SECONDS

from emoe.core.errors import CheckpointError, NotReadyError
from emoe.core.experts import ExpertId
from emoe.loader import bulk
from emoe.loader.reads import ExpertReads, Lease
from emoe.runtime.bulk_wire import (
    REPLY_BYTES,
    Ask,
    BulkError,
    Status,
    pack_ask,
    pack_hello,
    parse_reply,
    receive,
    set_deadlines,
)
from emoe.runtime.grids import ModelId
from emoe.runtime.lifecycle import ServiceHost
from emoe.store.store import ExpertStore
from emoe.v1 import loader_pb2 as pb
from emoe.v1 import residency_pb2
from emoe.worker import bulk_connection
from emoe.worker.loader_source import LoaderSource

A = ALL_EXPERTS[3]


def model_of(folder: Path) -> ModelId:
    with ExpertStore.open(folder) as store:
        return ModelId(digest=store.digest, family=store.family)


@contextlib.asynccontextmanager
async def pulling(folder: Path, **settings: Any) -> AsyncIterator[tuple[ServiceHost, LoaderSource]]:
    async with running(folder, drain_seconds=0, **settings) as host:
        with contextlib.closing(LoaderSource(host.address, model_of(folder), give_up_seconds=5)) as source:
            yield host, source


async def read(source: LoaderSource, expert: ExpertId, num_bytes: int) -> bytes:
    buffer = bytearray(num_bytes)
    await asyncio.to_thread(source.read_into, expert, memoryview(buffer))
    return bytes(buffer)


async def opened(address: str) -> tuple[int, bytes]:
    async with client(address) as (stub, model):
        answer = await stub.OpenBulk(pb.OpenBulkRequest(model=model.model), timeout=TIMEOUT_SECONDS)
        return answer.port, answer.ticket


@contextlib.contextmanager
def connected(port: int, ticket: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        set_deadlines(connection, receive_seconds=TIMEOUT_SECONDS, send_seconds=TIMEOUT_SECONDS)
        connection.sendall(pack_hello(ticket))
        yield connection


def greeting(port: int, ticket: bytes) -> Status:
    with connected(port, ticket) as connection:
        return parse_reply(receive(connection, REPLY_BYTES), request_id=0).status


async def test_every_expert_comes_in_bulk_the_first_time_and_again_from_the_page_cache(own_model: Path) -> None:
    with ExpertStore.open(own_model) as store:
        expected = {expert: store.read(expert) for expert in ALL_EXPERTS}
    async with pulling(own_model) as (_, source):
        for _ in range(2):
            for expert in ALL_EXPERTS:
                assert await read(source, expert, len(expected[expert])) == expected[expert]
        assert source.num_pulled_in_bulk == 2 * len(ALL_EXPERTS)


async def test_small_experts_come_in_bulk_too(tmp_path: Path) -> None:
    from support.checkpoints import save_with_tokenizer

    folder = save_with_tokenizer("qwen3_moe", tmp_path)
    with ExpertStore.open(folder) as store:
        expected, num_bytes = store.read(ExpertId(0, 1)), store.layout.num_bytes
    async with pulling(folder) as (_, source):
        assert [await read(source, ExpertId(0, 1), num_bytes) for _ in range(2)] == [expected] * 2
        assert source.num_pulled_in_bulk == 2


async def test_readers_that_share_a_source_each_get_their_own_expert(own_model: Path) -> None:
    with ExpertStore.open(own_model) as store:
        expected = [store.read(expert) for expert in ALL_EXPERTS]
    async with pulling(own_model) as (_, source):
        pulled = await asyncio.gather(*(read(source, expert, len(expected[0])) for expert in ALL_EXPERTS))
        assert pulled == expected
        assert source.num_pulled_in_bulk == len(ALL_EXPERTS)


async def test_ten_workers_that_ask_at_once_cause_one_read(own_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, leases, all_asked = [], [], threading.Event()
    plain_read, plain_lease = ExpertReads._read, Lease.__init__

    def read_once_all_have_asked(self: ExpertReads, expert: ExpertId) -> Any:
        reads.append(expert)
        assert all_asked.wait(TIMEOUT_SECONDS)
        return plain_read(self, expert)

    def counted_lease(self: Lease, *args: Any) -> None:
        leases.append(self)
        plain_lease(self, *args)
        if len(leases) == 10:
            all_asked.set()

    monkeypatch.setattr(ExpertReads, "_read", read_once_all_have_asked)
    monkeypatch.setattr(Lease, "__init__", counted_lease)
    num_bytes, model, loop = _num_bytes(own_model), model_of(own_model), asyncio.get_running_loop()
    async with running(own_model, drain_seconds=0) as host:
        with contextlib.ExitStack() as stack:
            threads = stack.enter_context(ThreadPoolExecutor(10))
            sources = [stack.enter_context(contextlib.closing(LoaderSource(host.address, model))) for _ in range(10)]
            buffers = [bytearray(num_bytes) for _ in sources]
            asked = zip(sources, buffers, strict=True)
            await asyncio.gather(
                *(loop.run_in_executor(threads, source.read_into, A, memoryview(buffer)) for source, buffer in asked)
            )
        assert [source.num_pulled_in_bulk for source in sources] == [1] * 10
    assert len(set(map(bytes, buffers))) == 1
    assert reads == [A]


@pytest.mark.parametrize("ticket", ["made up", "used"])
async def test_without_a_good_ticket_nobody_reads(own_model: Path, ticket: str) -> None:
    async with running(own_model, drain_seconds=0) as host:
        port, good = await opened(host.address)
        if ticket == "used":
            assert await asyncio.to_thread(greeting, port, good) is Status.BYTES
        assert await asyncio.to_thread(greeting, port, good if ticket == "used" else bytes(32)) is Status.REFUSED


async def test_a_ticket_is_for_the_model_that_is_served(own_model: Path) -> None:
    async with running(own_model) as host, client(host.address) as (stub, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.OpenBulk(pb.OpenBulkRequest(model=residency_pb2.ModelId(digest="other")))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(
    "said",
    [b"GET / HTTP/1.1\r\nHost: loader\r\n\r\n", pack_ask(Ask(request_id=1, layer=99, index=0))],
    ids=["another protocol", "no such expert"],
)
async def test_what_cannot_be_ends_the_connection(own_model: Path, said: bytes) -> None:
    async with running(own_model, drain_seconds=0) as host:
        port, ticket = await opened(host.address)

        def talk() -> None:
            with connected(port, ticket) as connection:
                receive(connection, REPLY_BYTES)
                connection.sendall(said)
                with pytest.raises(BulkError, match=r"closed|broken"):
                    receive(connection, REPLY_BYTES)

        await asyncio.to_thread(talk)


async def test_connections_are_bounded_and_a_worker_turned_away_pulls_by_calls(
    own_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bulk, "MAX_CONNECTIONS", 1)
    num_bytes = _num_bytes(own_model)
    async with pulling(own_model) as (host, source):
        port, ticket = await opened(host.address)
        with connected(port, ticket) as connection:
            await asyncio.to_thread(receive, connection, REPLY_BYTES)
            with caplog.at_level(logging.WARNING, logger="emoe.worker.bulk"):
                await read(source, A, num_bytes)
                await read(source, A, num_bytes)
        assert source.num_pulled_in_bulk == 0
        assert [record.message for record in caplog.records if record.name == "emoe.worker.bulk"] == [
            "the loader's bulk port: it says BUSY; experts come by calls for 5 s"
        ]


async def test_a_loader_without_a_bulk_port_serves_by_calls(own_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ExpertStore.open(own_model) as store:
        expected = store.read(A)
    async with pulling(own_model, bulk_listen="off") as (_, source):
        assert await read(source, A, len(expected)) == expected
        assert source.num_pulled_in_bulk == 0
    assert not [record for record in caplog.records if record.name == "emoe.worker.bulk"]


async def test_a_loader_that_comes_back_is_pulled_from_in_bulk_again(own_model: Path) -> None:
    num_bytes, model = _num_bytes(own_model), model_of(own_model)
    async with running(own_model, drain_seconds=0) as host:
        address = host.address
        source = LoaderSource(address, model, give_up_seconds=20)
        await read(source, A, num_bytes)
    with contextlib.closing(source):
        async with running(own_model, drain_seconds=0, listen=address):
            await read(source, A, num_bytes)
        assert source.num_pulled_in_bulk == 2


async def test_bytes_that_changed_on_disk_are_named_and_never_taken(own_model: Path) -> None:
    with ExpertStore.open(own_model) as store:
        expected = store.read(A)
    async with pulling(own_model) as (_, source):
        assert await read(source, A, len(expected)) == expected
        damage_in_place(own_model / "model.safetensors", expected[-64:])
        with pytest.raises(CheckpointError, match=r"reads differently|not those first read"):
            await read(source, A, len(expected))


async def test_a_file_cut_short_is_a_checkpoint_error_that_names_it(own_model: Path) -> None:
    num_bytes = _num_bytes(own_model)
    async with pulling(own_model) as (_, source):
        await asyncio.gather(*(read(source, expert, num_bytes) for expert in ALL_EXPERTS))
        with (own_model / "model.safetensors").open("r+b") as file:
            file.truncate(4096)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            await read(source, A, num_bytes)


async def test_a_worker_that_closes_ends_what_waits(own_model: Path) -> None:
    num_bytes = _num_bytes(own_model)
    async with pulling(own_model) as (_, source):
        await read(source, A, num_bytes)
        source.close()
        with pytest.raises(NotReadyError):
            await read(source, A, num_bytes)


async def test_a_worker_on_the_node_reads_the_files_that_it_is_handed_and_no_byte_crosses_a_socket(
    own_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExpertStore.open(own_model) as store:
        expected = {expert: store.read(expert) for expert in ALL_EXPERTS}
    monkeypatch.setattr(bulk_connection, "_receive", None)
    async with pulling(own_model, bulk_socket=tmp_path / "bulk.sock") as (_, source):
        for _ in range(2):
            for expert in ALL_EXPERTS:
                assert await read(source, expert, len(expected[expert])) == expected[expert]
        assert source.num_pulled_in_bulk == 2 * len(ALL_EXPERTS)


async def test_a_socket_that_is_not_seen_or_not_answered_leaves_the_port(own_model: Path, tmp_path: Path) -> None:
    num_bytes, path = _num_bytes(own_model), tmp_path / "bulk.sock"
    async with pulling(own_model, bulk_socket=path) as (_, source):
        path.unlink()
        await read(source, A, num_bytes)
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
        with contextlib.closing(LoaderSource(source._loader, model_of(own_model))) as other:
            await read(other, A, num_bytes)
            assert (source.num_pulled_in_bulk, other.num_pulled_in_bulk) == (1, 1)


async def test_on_the_node_too_nobody_is_handed_files_without_a_ticket(own_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "bulk.sock"

    def greet() -> Status:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(pack_hello(bytes(32)))
            return parse_reply(receive(connection, REPLY_BYTES), request_id=0).status

    async with running(own_model, drain_seconds=0, bulk_socket=path):
        assert await asyncio.to_thread(greet) is Status.REFUSED


async def test_on_the_node_changed_and_missing_bytes_are_named(own_model: Path, tmp_path: Path) -> None:
    with ExpertStore.open(own_model) as store:
        expected = store.read(A)
    async with pulling(own_model, bulk_socket=tmp_path / "bulk.sock") as (_, source):
        assert await read(source, A, len(expected)) == expected
        damage_in_place(own_model / "model.safetensors", expected[-64:])
        with pytest.raises(CheckpointError, match=r"reads differently|not those first read"):
            await read(source, A, len(expected))
        with (own_model / "model.safetensors").open("r+b") as file:
            file.truncate(4096)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            await read(source, A, len(expected))


def _num_bytes(folder: Path) -> int:
    with ExpertStore.open(folder) as store:
        return store.layout.num_bytes


def damage_in_place(file: Path, needle: bytes) -> None:
    """One bit, in the file that is open elsewhere."""
    offset = file.read_bytes().index(needle)
    with file.open("r+b") as opened:
        opened.seek(offset)
        opened.write(bytes([needle[0] ^ 1]))
