from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import store_samples
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from support.base_tensors import read_base_tensor

from emoe.core.errors import CheckpointError, InvalidRequestError
from emoe.core.experts import ExpertId, from_grid
from emoe.store.reads import device_bytes_read, unfilled
from emoe.store.store import ExpertStore, xxh3_64


def num_open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_an_expert_is_its_parts_end_to_end(store: ExpertStore) -> None:
    for layer, index in from_grid(store.grid.all_experts()):
        assert store.read(ExpertId(layer, index)) == store_samples.expert_bytes(layer, index)


def test_an_expert_cut_across_files_is_whole(sharded: Path) -> None:
    with ExpertStore.open(sharded) as store:
        for layer, index in from_grid(store.grid.all_experts()):
            assert store.read(ExpertId(layer, index)) == store_samples.expert_bytes(layer, index)


def test_just_the_bytes_needed_are_asked_for(sharded: Path) -> None:
    with ExpertStore.open(sharded) as store:
        for expert in from_grid(store.grid.all_experts()):
            store.read(expert)
        counters = store.counters
    assert counters.num_bytes_asked == store.grid.num_experts_total * store.layout.num_bytes


def test_parts_that_are_neighbours_in_the_file_are_one_read(store: ExpertStore) -> None:
    store.read(ExpertId(1, 2))
    assert store.counters.num_reads == 1


def test_base_tensors_are_read_as_stored_and_not_counted_as_experts(store: ExpertStore) -> None:
    expected = store_samples.base_tensors()
    for key in store.base_tensors:
        assert read_base_tensor(store, key) == expected[key].tobytes()
    assert store.counters.num_bytes_asked == 0


def test_a_view_of_any_item_type_is_filled(store: ExpertStore) -> None:
    array = np.empty(store.layout.num_bytes // 4, dtype=np.float32)
    store.read_into(ExpertId(0, 1), memoryview(array.data))
    assert array.tobytes() == store_samples.expert_bytes(0, 1)


def test_the_neighbourhood_of_the_buffer_stays_as_it_was(store: ExpertStore) -> None:
    size = store.layout.num_bytes
    block = bytearray(b"\xaa" * (size + 32))
    store.read_into(ExpertId(0, 1), memoryview(block)[16 : 16 + size])
    assert block == b"\xaa" * 16 + store_samples.expert_bytes(0, 1) + b"\xaa" * 16


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda size: memoryview(bytearray(size - 1)), id="too small"),
        pytest.param(lambda size: memoryview(bytearray(size + 1)), id="too large"),
        pytest.param(lambda size: memoryview(bytes(size)), id="read-only"),
        pytest.param(lambda size: memoryview(bytearray(2 * size))[::2], id="not contiguous"),
    ],
)
def test_a_buffer_that_does_not_fit_is_refused(store: ExpertStore, make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match="the buffer must be writable, contiguous and of"):
        store.read_into(ExpertId(0, 0), make(store.layout.num_bytes))


def test_an_expert_or_tensor_that_is_not_in_the_model_is_a_bad_request(store: ExpertStore) -> None:
    with pytest.raises(InvalidRequestError, match="layer 2, expert 0 is not in this model, which has 4 experts"):
        store.read(ExpertId(2, 0))
    with pytest.raises(InvalidRequestError, match=r"'model\.nothing' is not a base tensor"):
        store.read_tensor_into("model.nothing", memoryview(bytearray(4)))


def test_threads_read_at_once_and_every_byte_is_counted(sharded: Path) -> None:
    with ExpertStore.open(sharded) as store, ThreadPoolExecutor(8) as pool:
        experts = list(from_grid(store.grid.all_experts())) * 25
        for expert, data in zip(experts, pool.map(store.read, experts), strict=True):
            assert data == store_samples.expert_bytes(*expert)
        assert store.counters.num_bytes_asked == len(experts) * store.layout.num_bytes


def test_closing_under_readers_gives_right_bytes_or_an_error(sharded: Path) -> None:
    store = ExpertStore.open(sharded)
    experts = list(from_grid(store.grid.all_experts())) * 50

    def read(expert: ExpertId) -> bytes | None:
        try:
            return store.read(expert)
        except CheckpointError:
            return None

    with ThreadPoolExecutor(4) as pool:
        results = pool.map(read, experts)
        assert next(results) is not None
        store.close()
        for expert, data in zip(experts[1:], results, strict=True):
            assert data in (None, store_samples.expert_bytes(*expert))


def test_a_closed_store_says_so_and_closes_twice(folder: Path) -> None:
    store = ExpertStore.open(folder)
    before = num_open_files()
    store.close()
    store.close()
    assert num_open_files() == before - 1
    with pytest.raises(CheckpointError, match="this store is closed"):
        store.read(ExpertId(0, 0))


def test_a_store_that_fails_to_open_leaves_no_file_open(sharded: Path) -> None:
    (sharded / "model-00003-of-00003.safetensors").write_bytes(b"foreign")
    before = num_open_files()
    with pytest.raises(CheckpointError):
        ExpertStore.open(sharded)
    assert num_open_files() == before


def test_a_file_truncated_while_open_is_an_error_with_file_and_key(store: ExpertStore) -> None:
    os.truncate(store.folder / "model.safetensors", store_samples.data_start(store.folder / "model.safetensors") + 600)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated while in use.*experts\.3\.w1\.weight"):
        store.read(ExpertId(1, 3))


def test_a_file_replaced_while_open_is_still_the_old_one(store: ExpertStore) -> None:
    path = store.folder / "model.safetensors"
    path.with_suffix(".new").write_bytes(b"another")
    path.with_suffix(".new").replace(path)
    assert store.read(ExpertId(1, 3)) == store_samples.expert_bytes(1, 3)


def test_the_transfer_checksum_is_plain_xxh3(store: ExpertStore) -> None:
    data = store.read(ExpertId(0, 0))
    assert store.checksum(ExpertId(0, 0), memoryview(data)) == xxh3_64(data) == xxhash.xxh3_64(data).intdigest()
    with pytest.raises(ValueError, match="not 3"):
        store.checksum(ExpertId(0, 0), b"abc")


def test_device_bytes_only_grow() -> None:
    first = device_bytes_read()
    assert first is None or 0 <= first <= (device_bytes_read() or 0)


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=8), st.data())
def test_a_short_read_goes_on_where_it_ended(chunks: list[bytes], data: st.DataObject) -> None:
    done = data.draw(st.integers(0, sum(map(len, chunks))))
    rest = unfilled([memoryview(chunk) for chunk in chunks], done)
    assert b"".join(rest) == b"".join(chunks)[done:]
    assert all(len(view) > 0 for view in rest)
