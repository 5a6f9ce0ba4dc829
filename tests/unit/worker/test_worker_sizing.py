"""Expert memory auto: experts get what is left once the base model is loaded, and no more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.checkpoints import save_with_tokenizer
from support.quantised import write_mxfp4

from emoe.core.errors import BudgetError
from emoe.runtime.memory_room import MemoryRoom
from emoe.store.footprint import kv_bytes_per_token
from emoe.store.store import ExpertStore
from emoe.worker import sizing
from emoe.worker.preparing import prepare
from emoe.worker.quantised.stack import SCRATCH_BYTES
from emoe.worker.settings import WorkerSettings
from emoe.worker.sizing import HOST_KEPT_BYTES, ExpertSizing, kept_on_gpu, size_experts
from emoe.worker.sources import LocalSource

MIB = 2**20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ExpertStore]:
    save_with_tokenizer("mixtral", tmp_path)
    with ExpertStore.open(tmp_path) as opened:
        yield opened


def settings(store: ExpertStore) -> WorkerSettings:
    return WorkerSettings(model=store.folder, expert_memory="auto", max_context=64, max_concurrency=2, threads=1)


def room(free_bytes: int) -> MemoryRoom:
    return MemoryRoom(limit_bytes=free_bytes + 5 * MIB, used_bytes=5 * MIB, source="a limit")


def measured(free_bytes: int, *, kv_bytes: int = 0, all_bytes: int = 10**12) -> int:
    return ExpertSizing(room=room(free_bytes), kv_bytes=kv_bytes, kept_bytes=MIB, all_bytes=all_bytes).expert_bytes


def test_what_kv_and_steps_do_not_take_is_for_experts_but_a_twentieth() -> None:
    assert measured(22 * MIB) == 20 * MIB
    assert measured(42 * MIB, kv_bytes=20 * MIB) == 20 * MIB


def test_experts_get_no_more_than_all_of_them_take_and_no_less_than_nothing() -> None:
    assert measured(100 * MIB, all_bytes=7 * MIB) == 7 * MIB
    assert measured(MIB // 2) == 0


def test_the_kv_cache_is_counted_for_every_sequence(store: ExpertStore) -> None:
    sized = size_experts(store, device=torch.device("cpu"), max_context=100, max_concurrency=3)
    assert sized.kv_bytes == 300 * (kv_bytes_per_token(store.config, bits=32) or 0) > 0


def test_a_worker_with_room_for_half_of_the_experts_gets_as_many_slots(
    store: ExpertStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = size_experts(store, device=torch.device("cpu"), max_context=64, max_concurrency=2)
    free = HOST_KEPT_BYTES + whole.kv_bytes + whole.all_bytes * 21 // 40
    monkeypatch.setattr(sizing, "read_memory_room", lambda: room(free))
    with caplog.at_level("INFO"):
        parts, _ = prepare(settings(store), store, LocalSource(store), threading.Event())
    assert abs(parts.residency.arena.num_slots - store.grid.num_experts_total // 2) <= 1
    parts.residency.close()
    assert "MiB for experts: of a limit" in caplog.text


def test_a_worker_without_room_says_what_takes_it(store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "read_memory_room", lambda: room(HOST_KEPT_BYTES))
    with pytest.raises(BudgetError, match="nothing is left for experts"):
        prepare(settings(store), store, LocalSource(store), threading.Event())


def test_a_config_that_hides_the_kv_cache_is_told(store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "config", {})
    with pytest.raises(BudgetError, match="KV cache"):
        size_experts(store, device=torch.device("cpu"), max_context=64, max_concurrency=2)


def test_quantised_experts_keep_room_on_a_gpu_for_being_decoded(store: ExpertStore, tmp_path: Path) -> None:
    with ExpertStore.open(write_mxfp4(tmp_path / "quantised")) as quantised:
        assert kept_on_gpu(quantised) - kept_on_gpu(store) == SCRATCH_BYTES
