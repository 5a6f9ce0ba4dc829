"""The grouped path computes what the loop computes; it runs on a GPU, and is held to the loop here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.checkpoints import CONFIGS
from support.engines import assert_logits_close, generate, open_parts, random_prompts, use_grouped

from emoe.worker import grouped as grouped_products

PROMPTS = random_prompts([5, 33, 17], seed=5)


@pytest.mark.parametrize("max_groups", [1023, 5], ids=["one-turn", "turns"])
@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_grouped_products_give_the_loops_logits(
    checkpoint: Callable[[str], Path], family: str, max_groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouped_products, "MAX_GROUPS", max_groups)
    outcomes: list[list[torch.Tensor]] = []
    for grouped in (False, True):
        with open_parts(checkpoint(family), miss_policy="reroute") as full:
            num_slots = full.residency.grid.num_experts_total * 3 // 4
        with open_parts(checkpoint(family), miss_policy="reroute", num_slots=num_slots) as parts:
            use_grouped(parts, grouped=grouped)
            outcomes.append(generate(parts.build_engine(), PROMPTS, max_tokens=3)[1])
    for loop, in_groups in zip(*outcomes, strict=True):
        assert_logits_close(in_groups, loop)


def test_of_more_slots_than_one_turn_takes_only_short_steps_are_grouped(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_parts(checkpoint("mixtral"), miss_policy="reroute") as parts:
        stack = grouped_products.PlainStack(parts.residency.arena, transposed=False)
        assert stack.takes(10**6)
        monkeypatch.setattr(grouped_products, "MAX_GROUPS", 5)
        assert stack.takes(grouped_products.MAX_ROWS_IN_TURNS)
        assert not stack.takes(grouped_products.MAX_ROWS_IN_TURNS + 1)
