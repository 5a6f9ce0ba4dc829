"""The trial before slots are made: a step of the largest size, of which nothing stays."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.calibrations import write_calibration
from support.checkpoints import CONFIGS, save
from support.engines import generate, random_prompts

from emoe.core.budget import slot_bytes
from emoe.core.errors import NotReadyError
from emoe.core.experts import ExpertId
from emoe.store.calibration import read_calibration_info
from emoe.store.store import ExpertStore
from emoe.worker.build import EngineOptions, build_parts, load_base_model
from emoe.worker.engine import Engine
from emoe.worker.sizing import needs_of
from emoe.worker.sources import LocalSource
from emoe.worker.static_step import StepShape
from emoe.worker.trial import SPARED_PLACES, StepPeak, largest_step, measure_steps, num_shapes, sharing_weights
from emoe.worker.warmup import bring_first_residents

MIB = 2**20
PROMPTS = random_prompts([5, 33], seed=3)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ExpertStore]:
    save("qwen2_moe", tmp_path)
    with ExpertStore.open(tmp_path) as opened:
        yield opened


class CountingSource(LocalSource):
    def __init__(self, store: ExpertStore) -> None:
        super().__init__(store)
        self.seen: set[ExpertId] = set()

    def read_into(self, expert: ExpertId, buffer: memoryview) -> None:
        self.seen.add(expert)
        super().read_into(expert, buffer)


def options(store: ExpertStore, **fields: Any) -> EngineOptions:
    slots = 8 if fields.get("miss_policy") != "load" else 2
    given = {"max_context": 96, "max_concurrency": 3, "step_tokens": 128}
    return EngineOptions(**{"expert_memory": str(slots * slot_bytes(store.grid)), **given, **fields})


def tried(store: ExpertStore, asked: EngineOptions, model: Any, **fields: Any) -> StepPeak:
    given = {"kv_bytes_per_token": 1, "allowed_bytes": 2**40, "timeout_seconds": 30, "cut_short": threading.Event()}
    return measure_steps(store, fields.pop("source", LocalSource(store)), asked, model, **{**given, **fields})


@given(context=st.integers(8, 500), rows=st.integers(1, 9), spare=st.integers(0, 2000))
def test_the_largest_step_fills_its_tokens_as_far_as_contexts_let_it(context: int, rows: int, spare: int) -> None:
    asked = EngineOptions(max_context=context, max_concurrency=rows)
    sequences, longest = largest_step(asked, rows + spare), context - SPARED_PLACES
    assert len(sequences) == rows
    assert sum(sequence.num_pending for sequence in sequences) == min(rows + spare, rows * longest)
    assert {len(sequence.token_ids) for sequence in sequences} == {longest}, "all look back over the longest context"
    assert all(sequence.is_decoding == (sequence.num_pending == 1) for sequence in sequences)


@pytest.mark.parametrize("policy", ["reroute", "load"])
@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_every_family_is_measured(tmp_path: Path, family: str, policy: str) -> None:
    save(family, tmp_path)
    with ExpertStore.open(tmp_path) as store:
        asked = options(store, miss_policy=policy)
        asked = dataclasses.replace(asked, expert_memory=str(needs_of(store, asked).least_bytes))
        peak = tried(store, asked, load_base_model(store, asked))
    assert (peak.num_tokens, peak.recording_bytes, peak.is_foretold) == (128, 0, False)
    assert 0 < peak.code_bytes < peak.num_bytes + 64 * MIB, "a heap that was used before gives some back"


def test_a_model_answers_after_a_trial_as_without_one(tmp_path: Path) -> None:
    """Hooks that stayed would record routing twice, or choose among another's residents."""
    save("qwen2_moe", tmp_path)
    calibration = write_calibration(tmp_path)
    with ExpertStore.open(tmp_path) as store:
        info = read_calibration_info(calibration, digest=store.digest, fingerprint=store.fingerprint())
        assert info is not None
        memory = str(10 * slot_bytes(store.grid) + info.num_bytes)
        asked = options(store, miss_policy="reroute", calibration=info, expert_memory=memory)
        fresh, tested = load_base_model(store, asked), load_base_model(store, asked)
        tried(store, asked, tested)
        answers = [_answers(store, asked, model) for model in (fresh, tested)]
    (tokens, logits), (again, logits_again) = answers
    assert tokens == again
    assert all(torch.equal(one, other) for one, other in zip(logits, logits_again, strict=True))


def _answers(store: ExpertStore, asked: EngineOptions, model: Any) -> tuple[list[list[int]], list[torch.Tensor]]:
    parts = build_parts(store, LocalSource(store), asked, model)
    bring_first_residents(parts, timeout_seconds=30, cut_short=threading.Event())
    answers: tuple[list[list[int]], list[torch.Tensor]] = generate(parts.build_engine(), PROMPTS, max_tokens=4)
    return answers


def test_a_copy_shares_every_weight_and_no_module(store: ExpertStore) -> None:
    model = load_base_model(store, options(store))
    copy = sharing_weights(model)
    assert [p.data_ptr() for p in copy.parameters()] == [p.data_ptr() for p in model.parameters()]
    assert not set(map(id, copy.modules())) & set(map(id, model.modules()))


def test_a_larger_step_takes_more_by_what_its_tokens_need(tmp_path: Path) -> None:
    """gpt-oss lays its attention weights out: 64 MiB of them for 2048 places that look back over as many."""
    save("gpt_oss", tmp_path)
    with ExpertStore.open(tmp_path) as store:
        small, large = (options(store, expert_memory="60%", max_context=2100, step_tokens=n) for n in (64, 2048))
        model = load_base_model(store, small)
        assert tried(store, large, model).num_bytes > tried(store, small, model).num_bytes + 64 * MIB


def test_a_step_above_what_is_allowed_is_foretold_and_not_tried(
    store: ExpertStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    step = Engine.step

    def watched(engine: Engine) -> Any:
        sizes.append(engine.step_tokens)
        return step(engine)

    monkeypatch.setattr(Engine, "step", watched)
    asked = options(store, max_context=256, step_tokens=512)
    peak = tried(store, asked, load_base_model(store, asked), allowed_bytes=1)
    assert peak.is_foretold
    assert (peak.num_tokens, sizes) == (512, [64, 128])


def test_a_layer_reads_about_as_many_experts_as_one_token_needs(store: ExpertStore) -> None:
    """All places route alike, so exact mode does not read the model to measure a step."""
    source, asked = CountingSource(store), options(store, miss_policy="load")
    tried(store, asked, load_base_model(store, asked), source=source)
    rule, layers = store.grid.rule, len(store.grid.moe_layers)
    assert rule.top_k * layers <= len(source.seen) < store.grid.num_experts_total


def test_a_trial_that_is_cut_short_is_not_ready(store: ExpertStore) -> None:
    cut_short = threading.Event()
    cut_short.set()
    asked = options(store, miss_policy="load")
    with pytest.raises(NotReadyError, match="told to stop"):
        tried(store, asked, load_base_model(store, asked), cut_short=cut_short)


def test_recordings_are_one_for_each_padded_size_and_length_of_keys() -> None:
    assert num_shapes(1, 100) == 1
    assert num_shapes(8, 2048) == 4 * 4, "1, 2, 4, 8 sequences; 256 to 2048 keys"
    assert num_shapes(6, 3000) == 4 * 5


class RecordingDevice:
    """A gauge of a device, and what records steps on it, as torch does: its caches are given back first."""

    FIRST, OTHER = 5 * MIB, 2 * MIB
    code_bytes = 0

    def __init__(self) -> None:
        self.cached_bytes = self.recorded_bytes = 0
        self.shapes: list[StepShape] = []

    def run(self, shape: StepShape, step: Callable[[], None]) -> None:
        if shape not in self.shapes:
            self.cached_bytes = 0
            self.recorded_bytes += self.OTHER if self.shapes else self.FIRST
            self.shapes.append(shape)
        step()

    def begin(self) -> None: ...

    def most_bytes(self) -> int:
        return self.cached_bytes + self.recorded_bytes

    def settled_bytes(self) -> int:
        self.cached_bytes = 0
        return self.most_bytes()

    def held_bytes(self, **_held: int) -> int:
        return 0


def test_recordings_come_on_top_of_what_the_largest_step_took(
    store: ExpertStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, step = RecordingDevice(), Engine.step

    def caching(engine: Engine) -> Any:
        device.cached_bytes = max(device.cached_bytes, engine.step_tokens * MIB)
        return step(engine)

    monkeypatch.setattr(Engine, "step", caching)
    monkeypatch.setattr("emoe.worker.trial.gauge_of", lambda _device: device)
    monkeypatch.setattr("emoe.worker.build.CudaGraphs", lambda _device: device)
    monkeypatch.setattr("emoe.worker.build.static_rows", lambda *_: 3)
    asked = options(store, max_context=600, step_tokens=128)
    peak = tried(store, asked, load_base_model(store, asked))
    recorded = device.FIRST + (num_shapes(3, 600) - 1) * device.OTHER
    assert len(device.shapes) == 2
    assert (peak.recording_bytes, peak.num_bytes) == (recorded, 128 * MIB + recorded)
