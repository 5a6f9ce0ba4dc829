"""Hooks that set a calibration to work in a model: on its experts and its dense linears.

The routers' hooks are not made here: who serves, evaluates or trains knows where residents come from, and calls
`CalibratedLayer.choose`. T tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from emoe.core.errors import CheckpointError
from emoe.worker.calibration import CalibratedLayer, Calibration, LinearCorrection, linear_name
from emoe.worker.families import Family
from emoe.worker.loading import experts_modules

Lacking = Callable[[], "torch.Tensor | bool"]
"""Whether any expert is absent: of the whole step, or of a token [T, 1]."""


def attach_calibration(
    calibration: Calibration, model: nn.Module, family: Family, *, lacking: Lacking
) -> dict[int, CalibratedLayer]:
    """Each MoE layer's, for the routers' hooks. CheckpointError when the model lacks a linear that it corrects."""
    layers = {}
    for layer, module in experts_modules(model).items():
        layers[layer] = CalibratedLayer(calibration.layer(layer), family)
        layers[layer].attach(module)
    linears = dict(dense_linears(model))
    for key, correction in calibration.linears.items():
        assert isinstance(correction, LinearCorrection)
        linear = linears.get(linear_name(key))
        if linear is None or linear.weight.shape != (correction.expand.shape[0], correction.reduce.shape[1]):
            raise CheckpointError(
                f"the calibration corrects {linear_name(key)}, which this model has not, or otherwise"
            )
        linear.register_forward_hook(_linear_hook(correction, lacking))
    return layers


def dense_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Attention and FFNs that every token uses; no gates of a single output, no head."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in name and module.out_features > 1
    }


def _linear_hook(correction: LinearCorrection, lacking: Lacking) -> Callable[..., torch.Tensor]:
    def correct(_linear: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
        lacks = lacking()
        if lacks is False:
            return out
        corrected = out + correction(args[0])
        return corrected if lacks is True else torch.where(lacks, corrected, out)

    return correct
