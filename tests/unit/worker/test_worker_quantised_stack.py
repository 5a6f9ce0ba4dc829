"""Grouped products with quantised experts give the loop's logits, or leave the step to the loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import quantised
from support.engines import assert_logits_close, generate, open_parts, random_prompts, use_grouped
from support.static_steps import EagerSteps, static_engine

from emoe.store.store import ExpertStore
from emoe.worker.build import EngineParts, static_rows
from emoe.worker.quantised.stack import QuantisedStack

PROMPTS = random_prompts([5, 1, 7], seed=5)
NUM_SLOTS = 14


def stack_of(folder: Path, parts: EngineParts, *, scratch_bytes: int = 1 << 24) -> QuantisedStack:
    with ExpertStore.open(folder) as store:
        assert store.quantisation is not None
        return QuantisedStack(
            parts.residency.arena,
            store.quantisation,
            dtype=torch.float32,
            num_experts=store.grid.rule.num_experts,
            scratch_bytes=scratch_bytes,
        )


def write(name: str, folder: Path) -> Path:
    return quantised.write_mxfp4(folder) if name == "mxfp4" else quantised.write(name, "mixtral", folder)[0]


@pytest.mark.parametrize("name", ["mxfp4", *quantised.FORMATS])
def test_decoded_side_by_side_quantised_experts_give_the_loops_logits(name: str, tmp_path: Path) -> None:
    folder, outcomes = write(name, tmp_path), []
    for grouped in (False, True):
        with open_parts(folder, miss_policy="reroute", num_slots=NUM_SLOTS) as parts:
            stack = stack_of(folder, parts)
            assert stack.max_groups == parts.residency.grid.rule.num_experts
            use_grouped(parts, grouped=grouped, stack=stack)
            outcomes.append(generate(static_engine(parts, EagerSteps() if grouped else None), PROMPTS, max_tokens=4)[1])
    for loop, in_groups in zip(*outcomes, strict=True):
        assert_logits_close(in_groups * 0.1, loop * 0.1)


def test_steps_with_more_weights_than_the_scratch_holds_are_left_to_the_loop(tmp_path: Path) -> None:
    folder = write("mxfp4", tmp_path)
    with open_parts(folder, miss_policy="reroute", num_slots=NUM_SLOTS) as parts:
        whole = stack_of(folder, parts)
        a_group = 10 * whole._weights.numel() // whole.max_groups
        small = stack_of(folder, parts, scratch_bytes=2 * a_group)
        assert small.takes(2)
        assert not small.takes(3)
        assert whole.takes(10**6)


def test_recorded_steps_have_as_many_sequences_as_the_scratch_holds_weights_for(tmp_path: Path) -> None:
    folder = write("mxfp4", tmp_path)
    with open_parts(folder, miss_policy="reroute", num_slots=NUM_SLOTS) as parts:
        whole, grid = stack_of(folder, parts), parts.residency.grid
        a_group = 10 * whole._weights.numel() // whole.max_groups
        of_two_tokens = stack_of(folder, parts, scratch_bytes=2 * grid.rule.top_k * a_group)
        assert static_rows(whole, grid, parts.options) == parts.options.max_concurrency
        assert static_rows(of_two_tokens, grid, parts.options) == 2
        assert static_rows(None, grid, parts.options) == parts.static_rows == 0
