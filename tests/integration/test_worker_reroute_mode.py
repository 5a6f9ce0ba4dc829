"""Reroute mode equals a model that never had the absent experts: transformers' own, pruned to the residents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support.checkpoints import CONFIGS
from support.engines import assert_logits_close, generate, open_parts, random_prompts

from emoe.core.errors import BudgetError, PlanError
from emoe.core.experts import BoolGrid, ExpertGrid

PROMPTS = random_prompts([5, 33, 17, 60], seed=3)

Checkpoint = Callable[[str], Path]


def kept_experts(grid: ExpertGrid) -> BoolGrid:
    """Three quarters of each layer, others in each: whole groups where routing is by groups."""
    wanted = np.zeros(grid.shape, dtype=np.bool_)
    size = grid.rule.num_experts // grid.rule.num_groups
    num_units = grid.rule.num_groups if grid.rule.num_groups > 1 else grid.rule.num_experts
    for layer in grid.moe_layers:
        dropped = {(layer + i) % num_units for i in range(num_units // 4)}
        for unit in set(range(num_units)) - dropped:
            wanted[layer, unit * size : (unit + 1) * size] = True if grid.rule.num_groups > 1 else wanted[layer, 0]
            if grid.rule.num_groups == 1:
                wanted[layer, unit] = True
    return wanted


def prune(model: Any, wanted: BoolGrid) -> Any:
    """The same model whose routers and experts hold only the wanted ones, renumbered."""
    for layer, block in enumerate(model.model.layers):
        if not hasattr(block.mlp, "experts"):
            continue
        keep = torch.from_numpy(np.flatnonzero(wanted[layer]))
        router = getattr(block.mlp, "gate", None) or block.mlp.router
        for module in (block.mlp.experts, router):
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                setattr(
                    module, name, type(tensor)(tensor[keep]) if isinstance(tensor, torch.nn.Parameter) else tensor[keep]
                )
            groups = getattr(module, "num_group", None)
            if groups is not None:
                module.num_group = groups * len(keep) // module.num_experts
            module.num_experts = len(keep)
    return model


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_reroute_equals_the_model_pruned_to_its_residents(checkpoint: Checkpoint, family: str) -> None:
    folder = checkpoint(family)
    with open_parts(folder, miss_policy="load") as parts:
        grid = parts.residency.grid
    wanted = kept_experts(grid)
    assert 0 < wanted.sum() < grid.num_experts_total
    with open_parts(folder, miss_policy="reroute", num_slots=int(wanted.sum()) + 2, plan=wanted) as parts:
        _, logits = generate(parts.build_engine(), PROMPTS, max_tokens=1)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    with torch.inference_mode():
        full = [model(torch.tensor([prompt])).logits[0, -1] for prompt in PROMPTS]
        prune(model, wanted)
        for row, prompt in enumerate(PROMPTS):
            assert_logits_close(logits[0][row], model(torch.tensor([prompt])).logits[0, -1])
    assert any((logits[0][row] - full[row]).abs().max() > 1e-2 for row in range(len(PROMPTS)))


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_with_all_resident_reroute_equals_exact_mode(checkpoint: Checkpoint, family: str) -> None:
    outcomes = []
    for miss_policy in ("load", "reroute"):
        with open_parts(checkpoint(family), miss_policy=miss_policy) as parts:
            outcomes.append(generate(parts.build_engine(), PROMPTS, max_tokens=4))
    (exact_tokens, exact_logits), (tokens, logits) = outcomes
    assert tokens == exact_tokens
    for ours, exact in zip(logits, exact_logits, strict=True):
        assert_logits_close(ours, exact)


def test_a_refresh_between_steps_changes_residency_and_loses_no_request(checkpoint: Checkpoint) -> None:
    with open_parts(checkpoint("qwen2_moe"), miss_policy="reroute", num_slots=14) as parts:
        engine, residency = parts.build_engine(), parts.residency
        before = residency.table.resident.copy()
        wanted = np.roll(before, 3, axis=1)
        residency.set_plan(wanted, epoch=2)
        tokens, _ = generate(engine, PROMPTS, max_tokens=60)
        assert all(tokens)
        assert residency.applied_epoch == 2
        assert (residency.table.resident & wanted).sum() == wanted.sum()


def test_hits_count_what_the_router_wanted_not_what_it_got(checkpoint: Checkpoint) -> None:
    with open_parts(checkpoint("qwen2_moe"), miss_policy="reroute", num_slots=14) as parts:
        engine = parts.build_engine()
        generate(engine, PROMPTS, max_tokens=2)
        grid = parts.residency.grid
        assert 0 < engine.counters.num_expert_hits < engine.counters.num_expert_choices
        counts = engine.task_counts["chat"]
        assert counts.sum() == engine.counters.num_expert_choices
        assert counts[~parts.residency.table.resident].sum() > 0
        assert grid.rule.top_k * len(grid.moe_layers) * sum(map(len, PROMPTS)) <= counts.sum()


def test_a_plan_that_leaves_a_layer_unroutable_is_refused(checkpoint: Checkpoint) -> None:
    with open_parts(checkpoint("deepseek_v3"), miss_policy="reroute") as parts:
        grid = parts.residency.grid
        one_of_each_group = np.zeros(grid.shape, dtype=np.bool_)
        one_of_each_group[:, :: grid.rule.num_experts // grid.rule.num_groups] = True
        with pytest.raises(PlanError, match="unroutable"):
            parts.residency.set_plan(one_of_each_group, epoch=2)


def test_a_budget_below_the_routable_minimum_is_refused_with_the_bytes_it_takes(checkpoint: Checkpoint) -> None:
    with (
        pytest.raises(BudgetError, match="raise it to"),
        open_parts(checkpoint("mixtral"), miss_policy="reroute", num_slots=3),
    ):
        pass
