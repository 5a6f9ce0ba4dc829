"""Expert memory auto: experts get what is left of the memory once the base model is loaded and a step was measured."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkpoints import save_with_tokenizer

from emoe.core.budget import slot_bytes
from emoe.core.errors import BudgetError
from emoe.runtime.memory_room import MemoryRoom
from emoe.store.footprint import kv_bytes_per_token
from emoe.store.store import ExpertStore
from emoe.worker import gauges, preparing
from emoe.worker.build import EngineOptions
from emoe.worker.preparing import prepare
from emoe.worker.settings import WorkerSettings
from emoe.worker.sizing import HOST_MARGIN_BYTES, ExpertSizing, Needs, needs_of
from emoe.worker.sources import LocalSource
from emoe.worker.trial import StepPeak

MIB = 2**20
STEP = StepPeak(num_bytes=7 * MIB, num_tokens=64, seconds=0.5)
NEEDS = Needs(
    base_bytes=3 * MIB,
    kv_bytes=20 * MIB,
    kv_bytes_per_token=1,
    margin_bytes=5 * MIB,
    least_bytes=10 * MIB,
    all_bytes=10**12,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ExpertStore]:
    save_with_tokenizer("mixtral", tmp_path)
    with ExpertStore.open(tmp_path) as opened:
        yield opened


def settings(store: ExpertStore, **fields: object) -> WorkerSettings:
    given = {"model": store.folder, "expert_memory": "auto", "max_context": 64, "max_concurrency": 2, "threads": 1}
    return WorkerSettings(**{**given, **fields})  # type: ignore[arg-type]


def room(free_bytes: int) -> MemoryRoom:
    return MemoryRoom(limit_bytes=free_bytes + 5 * MIB, used_bytes=5 * MIB, source="a limit")


def sized(free_bytes: int, *, step: StepPeak = STEP, **needs: int) -> ExpertSizing:
    return ExpertSizing(room=room(free_bytes), needs=dataclasses.replace(NEEDS, **needs), step=step)


def test_what_keys_and_values_steps_and_the_margin_do_not_take_is_for_experts() -> None:
    assert sized(52 * MIB).expert_bytes == 20 * MIB


def test_experts_get_no_more_than_all_of_them_take_and_no_less_than_nothing() -> None:
    assert sized(100 * MIB, all_bytes=7 * MIB).expert_bytes == 7 * MIB
    assert sized(MIB).expert_bytes == 0


def test_every_part_of_the_account_is_said() -> None:
    step = dataclasses.replace(STEP, code_bytes=2 * MIB, recording_bytes=MIB)
    said = str(sized(52 * MIB, step=step))
    for part in (
        "20 MiB for experts",
        "of a limit, 57 MiB, 5 MiB are taken with the base model",
        "keys and values take 20 MiB",
        "a step of 64 tokens takes 7 MiB beside (2 MiB the libraries' code and 1 MiB recorded steps among it)",
        "5 MiB are a margin",
        "measured in 0.5 s",
    ):
        assert part in said


def test_the_least_that_the_miss_policy_needs_is_enough_and_a_byte_less_says_what_is_missing() -> None:
    sized(42 * MIB).check()
    with pytest.raises(BudgetError, match=r"the least is 10 MiB .*: give the worker 3 MiB more memory, or lower"):
        sized(39 * MIB).check()


def test_a_step_that_was_only_foretold_is_called_so() -> None:
    with pytest.raises(BudgetError, match="would take, as smaller ones foretell"):
        sized(MIB, step=dataclasses.replace(STEP, is_foretold=True)).check()


def test_the_kv_cache_is_counted_for_every_sequence(store: ExpertStore) -> None:
    needs = needs_of(store, EngineOptions(max_context=100, max_concurrency=3))
    assert needs.kv_bytes == 300 * (kv_bytes_per_token(store.config, bits=32) or 0) > 0


@pytest.mark.parametrize("policy", ["reroute", "load"])
def test_a_worker_gives_experts_what_its_own_account_leaves(
    store: ExpertStore, policy: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A room so tight that half of the experts fit, whatever a step takes."""
    free = _free_for(store, policy, share=0.5, monkeypatch=monkeypatch)
    monkeypatch.setattr(gauges, "read_memory_room", lambda: room(free))
    with caplog.at_level("INFO"):
        parts, _ = prepare(settings(store, miss_policy=policy), store, LocalSource(store), threading.Event())
    parts.residency.close()
    [said] = re.findall(r"expert_memory auto: (\d+) KiB for experts, .* takes (\d+) MiB beside", caplog.text)
    num_slots, total = parts.residency.arena.num_slots, store.grid.num_experts_total
    assert num_slots == int(said[0]) * 1024 // slot_bytes(store.grid)
    assert 0 < num_slots < total


def _free_for(store: ExpertStore, policy: str, *, share: float, monkeypatch: pytest.MonkeyPatch) -> int:
    """Measures nothing: the step is taken to be a fixed one, so that the account is known."""
    needs = needs_of(store, EngineOptions(miss_policy=policy, max_context=64, max_concurrency=2))
    monkeypatch.setattr("emoe.worker.sizing.measure_steps", lambda *_args, **_fields: STEP)
    return needs.kv_bytes + STEP.num_bytes + needs.margin_bytes + int(needs.all_bytes * share)


def test_a_worker_that_measures_its_own_step_gets_all_experts_where_there_is_room(
    store: ExpertStore, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        parts, _ = prepare(settings(store), store, LocalSource(store), threading.Event())
    parts.residency.close()
    assert parts.residency.arena.num_slots == store.grid.num_experts_total
    assert "measuring what the largest step takes" in caplog.text
    assert re.search(r"a step of 120 tokens takes \d+ MiB beside \(\d+ MiB the libraries' code among it\)", caplog.text)


def test_memory_without_room_for_what_must_be_is_refused_before_anything_is_loaded(
    store: ExpertStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauges, "read_memory_room", lambda: room(HOST_MARGIN_BYTES))
    monkeypatch.setattr(preparing, "load_base_model", lambda *_args: pytest.fail("the base model was loaded"))
    with pytest.raises(
        BudgetError, match=r"320 MiB are free, .* give the worker \d+ KiB more memory at least, or lower"
    ):
        prepare(settings(store), store, LocalSource(store), threading.Event())


def test_a_step_that_does_not_fit_is_refused_and_not_tried(store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for the margin and some kilobytes: any step takes more, with the libraries' code that it touches."""
    monkeypatch.setattr(gauges, "read_memory_room", lambda: room(HOST_MARGIN_BYTES + MIB))
    with pytest.raises(BudgetError, match=r"too little is left for experts.* foretell, \d+ MiB beside.* more memory"):
        prepare(settings(store), store, LocalSource(store), threading.Event())


def test_a_size_or_a_share_is_taken_as_it_is(store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "size_experts", lambda *_args, **_fields: pytest.fail("a step was measured"))
    parts, _ = prepare(settings(store, expert_memory="100%"), store, LocalSource(store), threading.Event())
    parts.residency.close()
    assert parts.residency.arena.num_slots == store.grid.num_experts_total


def test_a_config_that_hides_the_kv_cache_is_told(store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "config", {})
    with pytest.raises(BudgetError, match="KV cache"):
        needs_of(store, EngineOptions(max_context=64, max_concurrency=2))
