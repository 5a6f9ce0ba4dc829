"""Calibrations of small checkpoints: random ones, far from doing nothing, and files of them."""

from __future__ import annotations

from pathlib import Path

import torch

from emoe.store.calibration import PARTS, CalibrationShape, render_metadata
from emoe.store.profile import CALIBRATION_FILE
from emoe.store.store import ExpertStore
from emoe.worker.arena import DTYPES
from emoe.worker.calibration import Calibration
from emoe.worker.calibration_file import save_calibration
from emoe.worker.calibration_hooks import dense_linears
from emoe.worker.loading import load_model

SHAPE = CalibrationShape(parts=PARTS, standin_width=6, linear_rank=1)


def new_calibration(store: ExpertStore, *, shape: CalibrationShape = SHAPE, seed: int = 3) -> Calibration:
    """Every parameter random, so that each part shows."""
    model = load_model(store, torch.device("cpu"))
    sizes = {name: (linear.in_features, linear.out_features) for name, linear in dense_linears(model).items()}
    calibration = Calibration(
        shape,
        moe_layers=store.grid.moe_layers,
        hidden_size=model.config.hidden_size,
        num_experts=store.grid.rule.num_experts,
        sizes=sizes,
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter in calibration.parameters():
        parameter.data.normal_(0.0, 0.2, generator=generator)
    return calibration


def write_calibration(folder: Path, target: Path | None = None, *, shape: CalibrationShape = SHAPE) -> Path:
    """For the checkpoint in `folder`; beside it if no other place is given."""
    path = target or folder / CALIBRATION_FILE
    with ExpertStore.open(folder) as store:
        metadata = render_metadata(
            shape, digest=store.digest, fingerprint=store.fingerprint(), num_tokens=1, loss=0.5, made="by a test"
        )
        save_calibration(new_calibration(store, shape=shape), path, dtype=DTYPES[store.dtype], metadata=metadata)
    return path
