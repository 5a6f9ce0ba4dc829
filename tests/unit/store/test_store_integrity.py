from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import store_samples
from safetensors import safe_open

from emoe.core.errors import CheckpointError
from emoe.core.experts import ExpertId, from_grid
from emoe.store.integrity import FLUSH_EVERY
from emoe.store.store import ExpertStore

EXPERT = ExpertId(1, 2)
KEY = "model.layers.1.block_sparse_moe.experts.2.w3.weight"


def place_of(folder: Path) -> int:
    """A byte of EXPERT inside the single file."""
    with ExpertStore.open(folder) as store, safe_open(folder / "model.safetensors", "np") as file:
        needle = file.get_tensor(KEY).tobytes()
        store.read(EXPERT)
    return (folder / "model.safetensors").read_bytes().index(needle) + 7


def read_all(folder: Path, cache_dir: Path | None = None) -> None:
    with ExpertStore.open(folder, cache_dir=cache_dir) as store:
        for expert in from_grid(store.grid.all_experts()):
            store.read(expert)


def test_a_byte_that_flipped_is_found_and_file_key_and_advice_are_named(folder: Path) -> None:
    place = place_of(folder)
    read_all(folder)
    store_samples.flip_byte(folder / "model.safetensors", place)
    with ExpertStore.open(folder) as store:
        with pytest.raises(CheckpointError) as caught:
            store.read(EXPERT)
        assert store.read(ExpertId(0, 0)) == store_samples.expert_bytes(0, 0)
    message = str(caught.value)
    assert str(folder / "model.safetensors") in message
    assert KEY in message
    assert f"delete {folder / '.emoe-sha256.json'}" in message


def test_it_is_found_at_every_read_and_every_start(folder: Path) -> None:
    place = place_of(folder)
    store_samples.flip_byte(folder / "model.safetensors", place)
    for _ in range(2):
        with ExpertStore.open(folder) as store:
            for _ in range(2):
                with pytest.raises(CheckpointError, match="not those first read"):
                    store.read(EXPERT)


def test_a_file_that_looks_unchanged_is_not_hashed_again(folder: Path) -> None:
    place = place_of(folder)
    store_samples.flip_byte(folder / "model.safetensors", place, keep_time=True)
    with ExpertStore.open(folder) as store:
        store.read(EXPERT)


def test_a_touched_file_is_checked_once_and_then_trusted(folder: Path) -> None:
    place = place_of(folder)
    path = folder / "model.safetensors"
    store_samples.set_time(path, path.stat().st_mtime_ns + 5_000_000_000)
    with ExpertStore.open(folder) as store:
        store.read(EXPERT)
    store_samples.flip_byte(path, place, keep_time=True)
    with ExpertStore.open(folder) as store:
        store.read(EXPERT)


def test_only_experts_of_the_file_that_changed_are_checked(tmp_path: Path) -> None:
    folder = store_samples.write(
        tmp_path / "by-layer",
        store_samples.config(),
        store_samples.tensors(),
        num_shards=2,
        shard_of=lambda key: int(".layers.1." in key),
    )
    read_all(folder)
    first, second = sorted(folder.glob("*.safetensors"))
    for path, expert in ((first, ExpertId(0, 3)), (second, EXPERT)):
        place = path.read_bytes().index(store_samples.expert_bytes(*expert)[:64])
        store_samples.flip_byte(path, place, keep_time=path == second)
    with ExpertStore.open(folder) as store:
        store.read(EXPERT)
        store.read(ExpertId(0, 1))
        with pytest.raises(CheckpointError, match=r"00001-of-00002\.safetensors: .* not those first read"):
            store.read(ExpertId(0, 3))


def test_a_checkpoint_replaced_on_purpose_is_accepted_once_the_record_is_deleted(folder: Path) -> None:
    read_all(folder)
    changed = {key: tensor * np.float32(2) for key, tensor in store_samples.tensors().items()}
    path = store_samples.write(folder, store_samples.config(), changed) / "model.safetensors"
    store_samples.set_time(path, path.stat().st_mtime_ns + 1_000_000_000)
    with ExpertStore.open(folder) as store, pytest.raises(CheckpointError):
        store.read(EXPERT)
    (folder / ".emoe-sha256.json").unlink()
    read_all(folder)


def test_another_model_in_the_same_folder_starts_a_new_record(folder: Path) -> None:
    read_all(folder)
    changed = {key: tensor.astype(np.float16) for key, tensor in store_samples.tensors().items()}
    store_samples.write(folder, store_samples.config(), changed)
    read_all(folder)


def test_the_record_moves_to_the_cache_folder_where_the_folder_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    place = place_of(folder)
    (folder / ".emoe-index.json").unlink()
    (folder / ".emoe-sha256.json").unlink()
    store_samples.deny_writing(folder)
    cache = tmp_path / "cache"
    read_all(folder, cache)
    store_samples.flip_byte(folder / "model.safetensors", place)
    with (
        ExpertStore.open(folder, cache_dir=cache) as store,
        pytest.raises(CheckpointError, match=rf"delete {cache}/sha256-\w+\.json$"),
    ):
        store.read(EXPERT)


def test_a_torn_record_is_as_good_as_none(folder: Path) -> None:
    read_all(folder)
    path = folder / ".emoe-sha256.json"
    path.write_bytes(path.read_bytes()[:-40])
    read_all(folder)


def test_two_processes_records_are_put_together(folder: Path) -> None:
    place = place_of(folder)
    (folder / ".emoe-sha256.json").unlink()
    one, other = ExpertStore.open(folder), ExpertStore.open(folder)
    one.read(EXPERT)
    other.read(ExpertId(0, 0))
    one.close()
    other.close()
    store_samples.flip_byte(folder / "model.safetensors", place)
    with ExpertStore.open(folder) as store, pytest.raises(CheckpointError, match="not those first read"):
        store.read(EXPERT)


def test_a_model_read_in_full_is_recorded_without_waiting_for_the_end(folder: Path) -> None:
    store = ExpertStore.open(folder)
    assert store.grid.num_experts_total < FLUSH_EVERY
    for expert in from_grid(store.grid.all_experts()):
        assert not (folder / ".emoe-sha256.json").exists()
        store.read(expert)
    assert (folder / ".emoe-sha256.json").is_file()
    store.close()


def test_threads_that_race_for_a_first_read_agree(folder: Path) -> None:
    with ExpertStore.open(folder) as store, ThreadPoolExecutor(8) as pool:
        assert set(pool.map(store.read, [EXPERT] * 64)) == {store_samples.expert_bytes(*EXPERT)}
