"""A calibration's tensors: read for a model that is open, written in its dtype.

The header, and whether it is the right file, is `store.calibration`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from emoe.core.errors import CheckpointError
from emoe.core.experts import ExpertGrid
from emoe.store.calibration import CalibrationInfo
from emoe.worker.calibration import Calibration


def load_calibration(info: CalibrationInfo, grid: ExpertGrid, *, hidden_size: int, device: torch.device) -> Calibration:
    """Frozen, as stored. CheckpointError for tensors that are not those of such a model and of its own header."""
    with torch.device("meta"):
        calibration = Calibration(
            info.shape,
            moe_layers=grid.moe_layers,
            hidden_size=hidden_size,
            num_experts=grid.rule.num_experts,
            sizes=_linear_sizes(info),
        )
    try:
        tensors = safetensors.torch.load_file(info.path, device=str(device))
        calibration.load_state_dict(tensors, strict=True, assign=True)
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{info.path}: its tensors are not this model's ({error}); make it anew with `emoe profile --calibrate`"
        ) from error
    return calibration.requires_grad_(requires_grad=False).eval()


def save_calibration(calibration: Calibration, path: Path, *, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
    """Whole or not at all."""
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in calibration.state_dict().items()}
    partial = path.with_name(f".{path.name}.part")
    partial.write_bytes(safetensors.torch.save(tensors, metadata=dict(metadata)))
    partial.replace(path)


def _linear_sizes(info: CalibrationInfo) -> dict[str, tuple[int, int]]:
    sizes = {}
    for name, entry in info.tensors.items():
        owner, _, part = name.rpartition(".")
        other = info.tensors.get(f"{owner}.expand")
        if owner.startswith("linears.") and part == "reduce" and other is not None:
            module = owner.removeprefix("linears.").replace("/", ".")
            sizes[module] = (entry.shape[-1], other.shape[0])
    return sizes
