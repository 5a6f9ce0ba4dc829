"""The engine step by step: who advances, who ends, and that one sequence's end never touches another's answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.engines import MAX_CONTEXT, add, open_parts, random_prompts

from emoe.core.errors import CheckpointError, EmoeError, NotReadyError
from emoe.core.experts import ExpertId
from emoe.core.tasks import UNKNOWN
from emoe.worker.build import EngineParts
from emoe.worker.engine import MAX_TASKS_COUNTED, Engine
from emoe.worker.sequence import Sequence, TokenEvent

Checkpoint = Callable[[str], Path]


@pytest.fixture
def parts(checkpoint: Checkpoint) -> Iterator[EngineParts]:
    with open_parts(checkpoint("mixtral"), miss_policy="load", max_concurrency=4, step_tokens=8) as opened:
        yield opened


def run(engine: Engine) -> list[TokenEvent]:
    events = []
    while engine.has_work:
        events += engine.step()
    return events


def answer(sequence: Sequence) -> list[int]:
    return sequence.token_ids[sequence.num_prompt_tokens :]


def spoil_row(parts: EngineParts, row: int) -> None:
    """The next step's logits of one row are no numbers."""

    def spoil(_module: Any, _args: Any, logits: torch.Tensor) -> None:
        logits[:, row] = float("nan")
        hook.remove()

    hook = parts.model.lm_head.register_forward_hook(spoil)


@pytest.mark.parametrize("temperature", [0.0, 0.7], ids=["greedy", "sampled"])
def test_a_row_whose_logits_are_no_numbers_fails_alone(parts: EngineParts, temperature: float) -> None:
    engine = parts.build_engine()
    good, bad = (add(engine, name, [5, 6, 7], max_tokens=4, temperature=temperature) for name in ("good", "bad"))
    spoil_row(parts, 1)
    events = run(engine)
    assert [event.error != "" for event in events if event.sequence is bad] == [True]
    assert [event.error for event in events if event.sequence is good] == [""] * len(answer(good))
    assert answer(bad) == []


def test_a_prompt_and_answer_that_fill_the_context_exactly_are_served_to_the_last_token(parts: EngineParts) -> None:
    engine = parts.build_engine()
    (prompt,) = random_prompts([MAX_CONTEXT - 5])
    sequence = add(engine, "full", prompt, max_tokens=5)
    last = run(engine)[-1]
    assert last.finished
    assert len(answer(sequence)) == 5 or last.token_id in parts.eos_token_ids


def test_a_cancelled_sequence_leaves_the_others_answers_as_they_were(parts: EngineParts) -> None:
    """One that decodes, one in the middle of its prompt, one that waits: rows move, answers do not."""
    prompts = random_prompts([3, 40, 5, 30, 6])
    alone = []
    for prompt in prompts:
        engine = parts.build_engine()
        sequence = add(engine, "alone", prompt, max_tokens=12)
        run(engine)
        alone.append(answer(sequence))
    engine = parts.build_engine()
    sequences = [add(engine, str(number), prompt, max_tokens=12) for number, prompt in enumerate(prompts)]
    engine.step()
    engine.step()
    assert sequences[0].is_decoding
    assert 0 < sequences[1].num_in_kv < 40
    assert sequences[4].row == -1
    for name in ("0", "1", "4", "no such"):
        engine.cancel(name)
    run(engine)
    assert [answer(sequences[number]) for number in (2, 3)] == [alone[2], alone[3]]
    assert engine.num_running == engine.num_waiting == 0


def test_more_sequences_than_a_step_has_tokens_all_end(checkpoint: Checkpoint) -> None:
    with open_parts(checkpoint("olmoe"), miss_policy="load", max_concurrency=32, step_tokens=1) as parts:
        engine = parts.build_engine()
        sequences = [add(engine, str(number), [number + 3], max_tokens=3) for number in range(40)]
        run(engine)
        assert all(answer(sequence) for sequence in sequences)


@pytest.mark.parametrize(
    ("error", "is_for_want"),
    [
        pytest.param(CheckpointError("the file is corrupt"), False, id="corrupt"),
        pytest.param(NotReadyError("the file is corrupt no more, but the loader away"), True, id="away"),
    ],
)
def test_only_sequences_that_need_a_missing_expert_fail(
    parts: EngineParts, monkeypatch: pytest.MonkeyPatch, error: EmoeError, is_for_want: bool
) -> None:
    layer, (one, other) = 0, random_prompts([1, 1], seed=5)
    engine = parts.build_engine()
    choices = {}
    for name, prompt in (("one", one), ("other", other)):
        add(engine, name, prompt, max_tokens=1, task=name)
        run(engine)
        choices[name] = set(engine.task_counts[name][layer].nonzero()[0].tolist())
    only_one = choices["one"] - choices["other"]
    assert only_one, "the prompts are chosen to differ"
    parts.residency.table.evict(ExpertId(layer, bad := min(only_one)))
    read = parts.residency._transfer.load

    def corrupt(expert: ExpertId, slot: torch.Tensor, fence: Any) -> Callable[[], None]:
        if expert == ExpertId(layer, bad):
            raise error
        return read(expert, slot, fence)

    monkeypatch.setattr(parts.residency._transfer, "load", corrupt)
    sequences = {name: add(engine, name, prompt, max_tokens=1) for name, prompt in (("one", one), ("other", other))}
    events = {event.sequence: event for event in run(engine)}
    assert f"expert {bad} of layer {layer}" in events[sequences["one"]].error
    assert "the file is corrupt" in events[sequences["one"]].error
    assert events[sequences["one"]].is_for_want is is_for_want
    assert events[sequences["other"]].token_id is not None


def test_routing_counts_that_nobody_takes_are_bounded_by_tasks_and_lose_no_choice(parts: EngineParts) -> None:
    engine = parts.build_engine()
    for number in range(MAX_TASKS_COUNTED + 5):
        add(engine, str(number), [7], max_tokens=1, task=f"task-{number}")
    run(engine)
    assert len(engine.task_counts) == MAX_TASKS_COUNTED + 1
    assert engine.task_counts[UNKNOWN].sum() > 0
    assert sum(counts.sum() for counts in engine.task_counts.values()) == engine.counters.num_expert_choices


def test_a_step_says_what_it_did(checkpoint: Checkpoint) -> None:
    with open_parts(checkpoint("mixtral"), miss_policy="load", max_concurrency=4, num_slots=4, step_tokens=8) as parts:
        engine = parts.build_engine()
        add(engine, "one", [5, 6, 7], max_tokens=9)
        engine.step()
        first = engine.last_work
        assert first is not None
        assert (first.num_prompt_tokens, first.num_decoding, first.num_context_tokens) == (3, 0, 0)
        assert 0 < first.num_missed_tokens <= 3
        assert first.stall_seconds == parts.residency.counters.stall_seconds > 0
        add(engine, "two", [5] * 12, max_tokens=9)
        engine.step()
        second = engine.last_work
        assert second is not None
        assert (second.num_prompt_tokens, second.num_decoding, second.num_context_tokens) == (7, 1, 3)
        engine.cancel("one")
        engine.cancel("two")
        engine.step()
        assert engine.last_work is None
