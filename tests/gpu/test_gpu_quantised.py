"""Quantised experts on a GPU: the same classes that a CPU runs, against it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import quantised
from support.engines import generate, open_parts, random_prompts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch sees none"),
]

PROMPTS = random_prompts([5, 33, 17], seed=6)


@pytest.mark.parametrize("miss_policy", ["load", "reroute"])
@pytest.mark.parametrize("name", ["mxfp4", *quantised.FORMATS])
def test_quantised_experts_on_the_gpu_agree_with_the_cpu(name: str, miss_policy: str, tmp_path: Path) -> None:
    if name == "mxfp4":
        folder = quantised.write_mxfp4(tmp_path)
    else:
        folder, _ = quantised.write(name, "mixtral", tmp_path)
    outcomes = []
    for device in ("cpu", "cuda"):
        with open_parts(folder, miss_policy=miss_policy, num_slots=14, device=device) as parts:
            outcomes.append(generate(parts.build_engine(), PROMPTS, max_tokens=1)[1][0].cpu())
    torch.testing.assert_close(outcomes[1], outcomes[0], rtol=1e-3, atol=1e-3 * float(outcomes[0].abs().max()))
