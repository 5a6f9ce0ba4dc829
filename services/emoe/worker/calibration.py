"""Calibrated reroute: what stands in for the router's mass that fell on absent experts.

Beside the published weights, which stay as they are: in every MoE layer a stand-in expert, weighted by the mass that a
token lost there; a correction of the router's logits, for the choice among the residents; a gain on the experts'
input; and low-rank corrections of dense linears. The worker, evaluations and the training that made it all compute by
this module. It knows neither files nor how residents are chosen.
T tokens, D hidden, E experts, K choices a token, S stand-in width, R rank, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from emoe.store.calibration import GATE, LINEAR, NORM, STANDIN, CalibrationShape
from emoe.worker.families import Family

RouterOutput = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""(logits_TE, weights_TK, ids_TK), as transformers' routers give it."""
Sizes = Mapping[str, tuple[int, int]]
"""Dense linears by their module's name: (in, out) features."""


class LayerCalibration(nn.Module):
    """The parameters of one MoE layer. New ones change nothing yet: what they add is zero."""

    def __init__(self, shape: CalibrationShape, *, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.has_standin, self.has_gate, self.has_norm = (part in shape.parts for part in (STANDIN, GATE, NORM))
        self.gate_rank = shape.gate_rank
        if self.has_standin:
            self.standin_up = nn.Parameter(torch.randn(2 * shape.standin_width, hidden_size) * hidden_size**-0.5)
            self.standin_down = nn.Parameter(torch.zeros(hidden_size, shape.standin_width))
        if self.has_gate:
            self.gate_bias = nn.Parameter(torch.zeros(num_experts))
            self.gate_weight = nn.Parameter(torch.zeros(num_experts, shape.gate_rank or hidden_size))
        if self.has_gate and shape.gate_rank:
            self.gate_in = nn.Parameter(torch.randn(shape.gate_rank, hidden_size) * hidden_size**-0.5)
        if self.has_norm:
            # Kept as what is added to one: near one 16 bits are coarse.
            self.input_gain = nn.Parameter(torch.zeros(hidden_size))

    def correct(self, logits_TE: torch.Tensor, hidden_TD: torch.Tensor) -> torch.Tensor:
        """The logits to choose residents by."""
        if not self.has_gate:
            return logits_TE
        x = hidden_TD.to(self.gate_bias.dtype)
        reduced = F.linear(x, self.gate_in) if self.gate_rank else x
        return logits_TE + F.linear(reduced, self.gate_weight, self.gate_bias).to(logits_TE.dtype)

    def gain(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        if not self.has_norm:
            return hidden_TD
        return hidden_TD + (hidden_TD * self.input_gain).to(hidden_TD.dtype)

    def stand_in(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """A SiLU-gated FFN, whatever the family's experts are."""
        gate, up = F.linear(hidden_TD.to(self.standin_up.dtype), self.standin_up).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.standin_down).to(hidden_TD.dtype)


class LinearCorrection(nn.Module):
    """What is added to a dense linear's output, of rank R (as LoRA, arXiv 2106.09685 section 4.1)."""

    def __init__(self, rank: int, *, in_features: int, out_features: int) -> None:
        super().__init__()
        self.reduce = nn.Parameter(torch.randn(rank, in_features) * in_features**-0.5)
        self.expand = nn.Parameter(torch.zeros(out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.linear(x.to(self.reduce.dtype), self.reduce), self.expand).to(x.dtype)


class Calibration(nn.Module):
    """All parameters, by the model's own layer indices. `sizes`: of the linears, if these are a part of it."""

    def __init__(
        self, shape: CalibrationShape, *, moe_layers: tuple[int, ...], hidden_size: int, num_experts: int, sizes: Sizes
    ) -> None:
        super().__init__()
        self.shape = shape
        self.layers = nn.ModuleDict(
            {
                str(layer): LayerCalibration(shape, hidden_size=hidden_size, num_experts=num_experts)
                for layer in moe_layers
            }
        )
        self.linears = nn.ModuleDict(
            {
                linear_key(name): LinearCorrection(shape.linear_rank, in_features=inner, out_features=outer)
                for name, (inner, outer) in (sizes.items() if LINEAR in shape.parts else ())
            }
        )

    def layer(self, layer: int) -> LayerCalibration:
        found = self.layers[str(layer)]
        assert isinstance(found, LayerCalibration)
        return found

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


class CalibratedLayer:
    """One layer at work: the router's hook calls `choose`, then the experts' hooks correct the same tokens.

    A token whose experts are all resident keeps the published choice, input and output, bit for bit.
    """

    def __init__(self, weights: LayerCalibration, family: Family) -> None:
        self._weights = weights
        self._family = family
        self._lost_T1: torch.Tensor | None = None
        self._whole_T1: torch.Tensor | None = None
        self._hidden_TD: torch.Tensor | None = None

    def choose(self, router: Any, hidden: torch.Tensor, output: RouterOutput, resident: torch.Tensor) -> RouterOutput:
        """`resident` [E], or [T, E] where tokens have residents of their own. The logits stay the published ones."""
        logits_TE, weights_TK, wanted_TK = output
        kept_TK = resident.expand_as(logits_TE).gather(1, wanted_TK)
        # By the choice, not by the mass: an absent expert's weight may round to 0.
        self._whole_T1 = whole_T1 = kept_TK.all(dim=-1, keepdim=True)
        mass_TK = weights_TK.float()
        self._lost_T1 = mass_TK.masked_fill(kept_TK, 0.0).sum(-1, keepdim=True) / mass_TK.sum(-1, keepdim=True)
        corrected_TE = self._weights.correct(logits_TE, hidden.reshape(-1, hidden.shape[-1]))
        rerouted_TK, ids_TK = self._family.reroute(router, corrected_TE, resident)
        return (
            logits_TE,
            torch.where(whole_T1, weights_TK, rerouted_TK),
            torch.where(whole_T1, wanted_TK, ids_TK),
        )

    def attach(self, experts: nn.Module) -> None:
        experts.register_forward_pre_hook(self._before)
        experts.register_forward_hook(self._after)

    def _before(self, _experts: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if self._whole_T1 is None:
            return None
        self._hidden_TD = args[0]
        return torch.where(self._whole_T1, args[0], self._weights.gain(args[0])), *args[1:]

    def _after(self, _experts: nn.Module, _args: object, out_TD: torch.Tensor) -> torch.Tensor:
        whole_T1, lost_T1, hidden_TD = self._whole_T1, self._lost_T1, self._hidden_TD
        self._whole_T1 = self._lost_T1 = self._hidden_TD = None
        if whole_T1 is None or lost_T1 is None or hidden_TD is None or not self._weights.has_standin:
            return out_TD
        standin_TD = lost_T1.to(out_TD.dtype) * self._weights.stand_in(hidden_TD)
        return torch.where(whole_T1, out_TD, out_TD + standin_TD)


def linear_key(name: str) -> str:
    """A module's name as a key of one level."""
    return name.replace(".", "/")


def linear_name(key: str) -> str:
    return key.replace("/", ".")
