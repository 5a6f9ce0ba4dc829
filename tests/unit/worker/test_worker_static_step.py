"""A static step is the ordinary step, token for token, and nothing of a batch is fixed in it: a graph may record it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.calibrations import write_calibration
from support.checkpoints import CONFIGS
from support.engines import add, assert_logits_close, open_parts, random_prompts, use_grouped
from support.static_steps import EagerSteps, static_engine

from emoe.core.experts import from_grid
from emoe.worker import static_step
from emoe.worker.build import EngineParts
from emoe.worker.engine import Engine
from emoe.worker.static_step import padded_keys, padded_rows

Checkpoint = Callable[[str], Path]

NUM_SLOTS = 14
PROMPTS = random_prompts([5, 33, 2, 17, 9], seed=4)


@pytest.fixture(autouse=True)
def _short_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_step, "MIN_KEYS", 16)


def turn_residents_round(parts: EngineParts) -> None:
    """Those that a plan leaves in staging slots go too: which they are depends on the order of arrival."""
    residency = parts.residency
    wanted = np.ascontiguousarray(residency.table.resident[:, ::-1])
    residency.set_plan(wanted, epoch=residency.applied_epoch + 1)
    residency.wait_until_settled(timeout_seconds=30)
    for expert in list(from_grid(residency.table.resident & ~wanted)):
        residency._evict(expert)


def answers(engine: Engine, parts: EngineParts) -> tuple[dict[str, list[int]], list[torch.Tensor]]:
    """Of sequences that come and go while others run, with other residents every third step."""
    sequences = [add(engine, f"first-{i}", prompt, max_tokens=4 + 3 * i) for i, prompt in enumerate(PROMPTS)]
    logits, steps = [], 0
    while engine.has_work:
        if steps == 6:
            sequences.append(add(engine, "late", PROMPTS[3], max_tokens=9, temperature=0.8))
        if steps % 3 == 2:
            turn_residents_round(parts)
        engine.step()
        assert engine.logits_NV is not None
        logits.append(engine.logits_NV.clone())
        steps += 1
    return {s.sequence_id: s.token_ids for s in sequences}, logits


def both_ways(folder: Path, *, calibration: Path | None = None) -> tuple[EagerSteps, Engine]:
    """Asserts that they agree."""
    eager, outcomes, engines = EagerSteps(), [], []
    for replays in (None, eager):
        with open_parts(folder, miss_policy="reroute", num_slots=NUM_SLOTS, calibration=calibration) as parts:
            use_grouped(parts, grouped=True)
            engines.append(static_engine(parts, replays))
            outcomes.append(answers(engines[-1], parts))
    (tokens, logits), (static_tokens, static_logits) = outcomes
    assert static_tokens == tokens
    for ours, ordinary in zip(static_logits, logits, strict=True):
        assert_logits_close(ours * 0.1, ordinary * 0.1)  # products of other shapes round otherwise, layer upon layer
    ordinary, static = engines
    assert static.counters == ordinary.counters
    assert all(np.array_equal(static.task_counts[task], ordinary.task_counts[task]) for task in ordinary.task_counts)
    return eager, static


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_static_steps_answer_as_ordinary_ones_while_sequences_come_and_go(checkpoint: Checkpoint, family: str) -> None:
    eager, _ = both_ways(checkpoint(family))
    assert {shape.num_rows for shape in eager.shapes} >= {1, 2, 4, 8}
    assert {shape.num_keys for shape in eager.shapes} >= {32, 64}


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_static_steps_are_calibrated_as_ordinary_ones(checkpoint: Checkpoint, tmp_path: Path, family: str) -> None:
    calibration = write_calibration(checkpoint(family), tmp_path / "some.safetensors")
    eager, _ = both_ways(checkpoint(family), calibration=calibration)
    assert eager.shapes


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_nothing_of_batches_or_plans_is_fixed_in_a_static_step(checkpoint: Checkpoint, family: str) -> None:
    eager, _ = both_ways(checkpoint(family))
    repeated = [traces[1:] for traces in eager.traces.values() if len(traces) > 2]
    assert repeated
    for first, *others in repeated:  # the very first step of all makes the buffers that last
        assert all(other == first for other in others)


def test_a_step_with_a_prompt_in_it_or_with_too_many_sequences_is_an_ordinary_one(checkpoint: Checkpoint) -> None:
    eager = EagerSteps()
    with open_parts(checkpoint("mixtral"), miss_policy="reroute") as parts:
        use_grouped(parts, grouped=True)
        engine = static_engine(parts, eager, static_rows=2)
        for name, prompt in zip("abc", PROMPTS, strict=False):
            add(engine, name, prompt, max_tokens=3)
        engine.step()
        engine.step()
        assert not eager.shapes
        engine.cancel("b")
        engine.step()
        assert [shape.num_rows for shape in eager.shapes] == [2]


def test_a_row_whose_logits_are_no_numbers_harms_neither_neighbours_nor_who_takes_its_row(
    checkpoint: Checkpoint,
) -> None:
    with open_parts(checkpoint("mixtral"), miss_policy="reroute") as parts:
        use_grouped(parts, grouped=True)
        alone = static_engine(parts, EagerSteps())
        expected = add(alone, "good", PROMPTS[0], max_tokens=8)
        while alone.has_work:
            alone.step()
        engine = static_engine(parts, EagerSteps())
        good, bad = (add(engine, name, PROMPTS[0], max_tokens=8) for name in ("good", "bad"))
        engine.step()
        with torch.inference_mode():
            for block in [*engine._kv._keys.values(), *engine._kv._values.values()]:
                block[bad.row] = float("nan")
        engine.step()
        assert engine.num_running == 1
        heir = add(engine, "heir", PROMPTS[0], max_tokens=8)
        while engine.has_work:
            engine.step()
        assert good.token_ids == heir.token_ids == expected.token_ids


@pytest.mark.parametrize(("count", "padded"), [(1, 1), (2, 2), (3, 4), (5, 6), (6, 6)])
def test_rows_are_padded_to_powers_of_two_up_to_what_there_is(count: int, padded: int) -> None:
    assert padded_rows(count, 6) == padded


@pytest.mark.parametrize(("longest", "padded"), [(1, 16), (16, 16), (17, 32), (33, 60), (60, 60)])
def test_keys_are_padded_to_doubling_lengths_up_to_the_longest_context(longest: int, padded: int) -> None:
    assert padded_keys(longest, 60) == padded
