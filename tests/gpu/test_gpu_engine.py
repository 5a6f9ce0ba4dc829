"""The CUDA path against the CPU's, with real copies over a stream of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import checkpoints
from support.calibrations import write_calibration
from support.engines import add, assert_logits_close, generate, open_parts, random_prompts, use_grouped

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch sees none"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]

PROMPTS = random_prompts([5, 33, 17, 60], seed=6)
FAMILIES = sorted(checkpoints.CONFIGS)

Checkpoint = Callable[[str], Path]


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_mode_on_the_gpu_gives_the_same_logits_at_any_budget(checkpoint: Checkpoint, family: str) -> None:
    outcomes = []
    for num_slots in (None, 4):
        with open_parts(checkpoint(family), miss_policy="load", num_slots=num_slots, device="cuda") as parts:
            outcomes.append(generate(parts.build_engine(), PROMPTS, max_tokens=6))
    (tokens, logits), (paged_tokens, paged_logits) = outcomes
    assert paged_tokens == tokens
    assert all(torch.equal(paged, full) for paged, full in zip(paged_logits, logits, strict=True))


@pytest.mark.parametrize("miss_policy", ["load", "reroute"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gpu_agrees_with_the_cpu(checkpoint: Checkpoint, family: str, miss_policy: str) -> None:
    outcomes = []
    for device in ("cpu", "cuda"):
        with open_parts(checkpoint(family), miss_policy=miss_policy, device=device) as parts:
            outcomes.append(generate(parts.build_engine(), PROMPTS, max_tokens=1)[1][0].cpu())
    torch.testing.assert_close(outcomes[1], outcomes[0], rtol=1e-3, atol=1e-3 * float(outcomes[0].abs().max()))


@pytest.mark.parametrize("calibrated", [False, True], ids=["plain", "calibrated"])
def test_a_reroute_step_in_bfloat16_does_not_wait_for_the_host(tmp_path: Path, calibrated: bool) -> None:
    folder = checkpoints.save("qwen2_moe", tmp_path, dtype=torch.bfloat16)
    calibration = write_calibration(folder) if calibrated else None
    with open_parts(folder, miss_policy="reroute", num_slots=18, device="cuda", calibration=calibration) as parts:
        engine = dataclasses.replace(parts, static_rows=0).build_engine()
        generate(engine, PROMPTS, max_tokens=2)
        model, batches = parts.model, []
        forward = model.forward

        def watched(*args: object, **kwargs: object) -> object:
            torch.cuda.set_sync_debug_mode("error")
            try:
                batches.append(kwargs["emoe_step"])
                return forward(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        model.forward = watched
        add(engine, "watched", PROMPTS[0], max_tokens=4)
        while engine.has_work:
            engine.step()
        assert len(batches) == 4


def test_a_refresh_copies_beside_the_steps_and_changes_the_residents(checkpoint: Checkpoint) -> None:
    with open_parts(checkpoint("qwen3_moe"), miss_policy="reroute", num_slots=14, device="cuda") as parts:
        residency = parts.residency
        wanted = residency.table.resident.copy()
        wanted = wanted[:, ::-1].copy()
        residency.set_plan(wanted, epoch=2)
        tokens, _ = generate(parts.build_engine(), PROMPTS, max_tokens=40)
        assert all(tokens)
        residency.wait_until_settled(timeout_seconds=30)
        assert (residency.table.resident & wanted).sum() == wanted.sum()


@pytest.mark.parametrize("calibrated", [False, True], ids=["plain", "calibrated"])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_grouped_products_on_the_gpu_agree_with_the_loop(tmp_path: Path, family: str, calibrated: bool) -> None:
    folder = checkpoints.save(family, tmp_path, dtype=torch.bfloat16)
    calibration = write_calibration(folder) if calibrated else None
    outcomes = []
    for grouped in (False, True):
        with open_parts(folder, miss_policy="reroute", num_slots=14, device="cuda", calibration=calibration) as parts:
            use_grouped(parts, grouped=grouped)
            outcomes.append(generate(parts.build_engine(), PROMPTS, max_tokens=1)[1][0].float())
    assert_logits_close(outcomes[1] * 1e-3, outcomes[0] * 1e-3)
