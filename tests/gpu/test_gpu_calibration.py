"""Calibrated reroute on a GPU gives the CPU's numbers, with residents that were copied there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.calibrations import write_calibration
from support.checkpoints import CONFIGS
from support.engines import generate, open_parts, random_prompts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch sees none"),
]

PROMPTS = random_prompts([5, 33, 17, 60], seed=6)


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_a_calibrated_gpu_agrees_with_the_cpu(checkpoint: Callable[[str], Path], tmp_path: Path, family: str) -> None:
    calibration = write_calibration(checkpoint(family), tmp_path / "some.safetensors")
    outcomes = []
    for device in ("cpu", "cuda"):
        with open_parts(
            checkpoint(family), miss_policy="reroute", num_slots=12, device=device, calibration=calibration
        ) as parts:
            outcomes.append(generate(parts.build_engine(), PROMPTS, max_tokens=1)[1][0].cpu())
    torch.testing.assert_close(outcomes[1], outcomes[0], rtol=1e-3, atol=1e-3 * float(outcomes[0].abs().max()))
