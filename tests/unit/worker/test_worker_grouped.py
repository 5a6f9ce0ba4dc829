"""The grouped path computes what the loop computes; it runs on a GPU, and is held to the loop here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.checkpoints import CONFIGS
from support.engines import assert_logits_close, generate, open_parts, random_prompts, use_grouped

PROMPTS = random_prompts([5, 33, 17], seed=5)


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_grouped_products_give_the_loops_logits(checkpoint: Callable[[str], Path], family: str) -> None:
    outcomes: list[list[torch.Tensor]] = []
    for grouped in (False, True):
        with open_parts(checkpoint(family), miss_policy="reroute") as full:
            num_slots = full.residency.grid.num_experts_total * 3 // 4
        with open_parts(checkpoint(family), miss_policy="reroute", num_slots=num_slots) as parts:
            use_grouped(parts, grouped=grouped)
            outcomes.append(generate(parts.build_engine(), PROMPTS, max_tokens=3)[1])
    for loop, in_groups in zip(*outcomes, strict=True):
        assert_logits_close(in_groups, loop)
