"""Exact mode (`load`): whatever the budget, the output of the full model; transformers is the reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from support.checkpoints import CONFIGS
from support.engines import assert_logits_close, generate, open_parts, random_prompts

FAMILIES = sorted(CONFIGS)
ALONE = random_prompts([21])
MIXED = random_prompts([5, 33, 17, 60, 9, 24, 3, 40])
MAX_TOKENS = 8

Checkpoint = Callable[[str], Path]


@pytest.mark.parametrize("prompts", [ALONE, MIXED], ids=["alone", "8-mixed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_any_budget_gives_the_logits_of_all_resident_bit_for_bit(
    checkpoint: Checkpoint, family: str, prompts: list[list[int]]
) -> None:
    with open_parts(checkpoint(family), miss_policy="load") as parts:
        top_k = parts.residency.grid.rule.top_k
        total = parts.residency.grid.num_experts_total
        tokens, logits = generate(parts.build_engine(), prompts, max_tokens=MAX_TOKENS)
        assert parts.residency.counters.num_experts_loaded <= total
    for num_slots, lookahead in ((top_k, True), (top_k + 1, False), (total // 2, False), (total - 1, True)):
        with open_parts(checkpoint(family), miss_policy="load", num_slots=num_slots, lookahead=lookahead) as parts:
            paged_tokens, paged_logits = generate(parts.build_engine(), prompts, max_tokens=MAX_TOKENS)
            assert lookahead or parts.residency.counters.num_experts_loaded > num_slots
            assert (parts.residency.guesses.num_begun > 0) == (lookahead and parts.residency.guesses.are_made)
        assert paged_tokens == tokens
        assert all(torch.equal(paged, full) for paged, full in zip(paged_logits, logits, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_greedy_tokens_are_those_of_transformers(checkpoint: Checkpoint, family: str) -> None:
    folder = checkpoint(family)
    with open_parts(folder, miss_policy="load", num_slots=4) as parts:
        tokens, logits = generate(parts.build_engine(), MIXED, max_tokens=MAX_TOKENS)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    with torch.inference_mode():
        for row, prompt in enumerate(MIXED):
            ids = torch.tensor([prompt])
            assert_logits_close(logits[0][row], model(ids).logits[0, -1])
            answer = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_TOKENS, do_sample=False, pad_token_id=0
            )
            assert tokens[row] == answer[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_longer_than_a_step_is_prefilled_in_chunks(checkpoint: Checkpoint, family: str) -> None:
    whole, chunked = [], []
    for step_tokens, outcome in ((1024, whole), (16, chunked)):
        with open_parts(checkpoint(family), miss_policy="load", step_tokens=step_tokens) as parts:
            outcome.extend(generate(parts.build_engine(), MIXED, max_tokens=MAX_TOKENS)[0])
    assert chunked == whole


@pytest.mark.parametrize("num_slots", [2, 12, 15], ids=lambda num: f"{num}-slots")
def test_a_prefill_step_reads_each_expert_once_also_when_it_reads_ahead(checkpoint: Checkpoint, num_slots: int) -> None:
    with open_parts(checkpoint("qwen3_moe"), miss_policy="load", num_slots=num_slots, lookahead=True) as parts:
        _, logits_of_steps = generate(parts.build_engine(), MIXED, max_tokens=1)
        assert len(logits_of_steps) == 1
        assert parts.residency.counters.num_experts_loaded <= parts.residency.grid.num_experts_total


def test_no_expert_weight_lives_outside_the_slots(checkpoint: Checkpoint) -> None:
    with open_parts(checkpoint("mixtral"), miss_policy="load", num_slots=2) as parts:
        names = [name for name, _ in parts.model.named_parameters()] + [name for name, _ in parts.model.named_buffers()]
        assert names
        assert not [name for name in names if ".experts." in name]
