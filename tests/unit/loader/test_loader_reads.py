"""Shared reads: one read however many ask, a bound on what is held, and nothing held once let go."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

import pytest

from emoe.core.errors import CheckpointError, NotReadyError
from emoe.core.experts import ExpertId
from emoe.loader.frames import frames
from emoe.loader.pulls import READ_AHEAD_EXPERTS, pull
from emoe.loader.reads import ExpertReads, LoadedExpert
from emoe.v1 import loader_pb2 as pb

NUM_BYTES = 8
A, B, C = ExpertId(0, 1), ExpertId(0, 2), ExpertId(1, 1)


class GatedStore:
    """Expert (l, i) is the byte 16 l + i, eight times. Reads wait for the gate; bad experts cannot be read."""

    def __init__(self, *, bad: frozenset[ExpertId] = frozenset()) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        self.bad = bad
        self.reads: list[ExpertId] = []

    def read_into(self, expert: ExpertId, buffer: memoryview) -> None:
        self.begun.release()
        assert self.gate.wait(10)
        self.reads.append(expert)
        if expert in self.bad:
            raise CheckpointError(f"model.safetensors: {expert} is corrupt")
        buffer[:] = bytes([16 * expert.layer + expert.index]) * NUM_BYTES

    def checksum(self, expert: ExpertId, buffer: memoryview) -> int:
        return sum(buffer)


@contextlib.contextmanager
def reading(
    store: GatedStore, *, max_experts: int = 8, num_threads: int = 2, wait_seconds: float = 5.0
) -> Iterator[ExpertReads]:
    reads = ExpertReads(
        store,
        expert_bytes=NUM_BYTES,
        max_bytes=max_experts * NUM_BYTES,
        num_threads=num_threads,
        wait_seconds=wait_seconds,
    )
    try:
        yield reads
    finally:
        store.gate.set()
        reads.close()


async def collect(reads: ExpertReads, *experts: ExpertId) -> list[tuple[ExpertId, bytes]]:
    received: list[tuple[ExpertId, bytes]] = []
    await collect_into(received, reads, *experts)
    return received


async def collect_into(received: list[tuple[ExpertId, bytes]], reads: ExpertReads, *experts: ExpertId) -> None:
    async with contextlib.aclosing(pull(experts, reads)) as pulled:
        async for expert, loaded in pulled:
            received.append((expert, bytes(loaded.data)))


def content(expert: ExpertId) -> bytes:
    return bytes([16 * expert.layer + expert.index]) * NUM_BYTES


async def test_experts_come_in_the_order_asked_for() -> None:
    with reading(GatedStore()) as reads:
        assert await collect(reads, C, A, B, A) == [(e, content(e)) for e in (C, A, B, A)]


async def test_concurrent_pulls_of_an_expert_read_it_once() -> None:
    store = GatedStore()
    store.gate.clear()
    with reading(store) as reads:
        pulls = [asyncio.create_task(collect(reads, A)) for _ in range(5)]
        await asyncio.to_thread(store.begun.acquire, timeout=10)
        store.gate.set()
        results = await asyncio.gather(*pulls)
    assert results == [[(A, content(A))]] * 5
    assert store.reads == [A]


async def test_an_expert_let_go_is_read_again() -> None:
    store = GatedStore()
    with reading(store) as reads:
        await collect(reads, A)
        await collect(reads, A)
    assert store.reads == [A, A]


async def test_a_failed_read_fails_all_who_wait_and_is_tried_again() -> None:
    store = GatedStore(bad=frozenset({A}))
    with reading(store) as reads:
        results = await asyncio.gather(*(collect(reads, A) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(result, CheckpointError) for result in results)
        store.bad = frozenset()
        assert await collect(reads, A) == [(A, content(A))]


async def test_a_corrupt_expert_does_not_keep_the_ones_before_it_back() -> None:
    with reading(GatedStore(bad=frozenset({B}))) as reads:
        received: list[tuple[ExpertId, bytes]] = []
        with pytest.raises(CheckpointError, match="corrupt"):
            await collect_into(received, reads, A, B, C)
        assert received == [(A, content(A))]
        assert await collect(reads, C) == [(C, content(C))]


async def test_no_more_is_held_than_the_bound() -> None:
    with reading(GatedStore(), max_experts=2) as reads:
        first, second = await reads.acquire(A), await reads.acquire(B)
        waiting = asyncio.create_task(reads.acquire(C))
        await asyncio.gather(first.loaded(), second.loaded())
        assert not waiting.done()
        first.release()
        third = await waiting
        assert bytes((await third.loaded()).data) == content(C)


async def test_a_shared_expert_needs_no_further_room() -> None:
    with reading(GatedStore(), max_experts=1) as reads:
        await reads.acquire(A)
        again = await reads.acquire(A)
        assert bytes((await again.loaded()).data) == content(A)


async def test_no_room_in_time_is_told_to_the_client() -> None:
    with reading(GatedStore(), max_experts=1, wait_seconds=0.01) as reads:
        await reads.acquire(A)
        with pytest.raises(NotReadyError, match="ask again"):
            await reads.acquire(B)


async def test_a_pull_that_is_cancelled_lets_go_of_everything() -> None:
    store = GatedStore()
    store.gate.clear()
    with reading(store, max_experts=2) as reads:
        cancelled = asyncio.create_task(collect(reads, A, B))
        await asyncio.to_thread(store.begun.acquire, timeout=10)
        await asyncio.to_thread(store.begun.acquire, timeout=10)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        store.gate.set()
        assert await collect(reads, C, B) == [(C, content(C)), (B, content(B))]


async def test_many_pulls_through_a_narrow_bound_all_finish() -> None:
    with reading(GatedStore(), max_experts=1) as reads:
        experts = [ExpertId(0, index) for index in range(6)]
        orders = [experts, experts[::-1], experts[3:] + experts[:3], experts[::2] + experts[1::2]]
        results = await asyncio.gather(*(collect(reads, *order) for order in orders))
    assert [[expert for expert, _ in result] for result in results] == orders


async def test_the_next_experts_are_read_while_one_is_sent() -> None:
    store = GatedStore()
    experts = [ExpertId(0, index) for index in range(READ_AHEAD_EXPERTS + 3)]
    with reading(store, max_experts=16) as reads:
        async with contextlib.aclosing(pull(experts, reads)) as pulled:
            await anext(pulled)
            assert reads.num_reads == READ_AHEAD_EXPERTS + 1


@pytest.mark.parametrize("chunk_bytes", [1, 3, 4, 8, 300], ids=str)
def test_frames_are_what_protobuf_would_have_written(chunk_bytes: int) -> None:
    data = bytes(range(256)) * 2
    messages = [
        pb.PullExpertsResponse.FromString(frame)
        for frame in frames(A, LoadedExpert(data=memoryview(data), xxh3=2**64 - 1), chunk_bytes=chunk_bytes)
    ]
    assert b"".join(message.data for message in messages) == data
    assert [message.offset for message in messages] == list(range(0, len(data), chunk_bytes))
    assert [message.last for message in messages] == [False] * (len(messages) - 1) + [True]
    assert [message.xxh3 for message in messages] == [0] * (len(messages) - 1) + [2**64 - 1]
    assert all((message.expert.layer, message.expert.index) == A for message in messages)
