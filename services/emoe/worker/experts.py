"""The experts function that transformers calls in every MoE layer, and what it records of a step's routing.

Registered under the name `emoe`. It computes on views of slots, expert by expert; every expert's output goes to its
own row of a [T * K, D] buffer that is summed in the order of K, so the order in which experts arrive never shows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from emoe.core.experts import BoolGrid
from emoe.worker.arena import SlotArena
from emoe.worker.families import Family
from emoe.worker.residency import Residency

NAME = "emoe"


class StepRouting:
    """What the routers wanted in one step, resident or not. L layers, T tokens, K choices a token."""

    def __init__(self) -> None:
        self._ids_TK: dict[int, torch.Tensor] = {}
        self._hits_T: dict[int, npt.NDArray[np.int64]] = {}
        self.failed_tokens: set[int] = set()

    def begin(self) -> None:
        self._ids_TK.clear()
        self._hits_T.clear()
        self.failed_tokens.clear()

    def record(self, layer: int, wanted_ids_TK: torch.Tensor, hits_T: npt.NDArray[np.int64] | None = None) -> None:
        self._ids_TK[layer] = wanted_ids_TK
        if hits_T is not None:
            self._hits_T[layer] = hits_T

    def collect(self, resident: BoolGrid) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """After the step, in one copy from the device: layers [L], ids [L, T, K], hits a token [T].

        Where a layer did not count its own hits, residency stood still: `resident` tells them.
        """
        layers = np.array(sorted(self._ids_TK), dtype=np.int64)
        ids_LTK = torch.stack([self._ids_TK[layer] for layer in layers]).cpu().numpy()
        if self._hits_T:
            return layers, ids_LTK, np.sum([self._hits_T[layer] for layer in layers], axis=0)
        return layers, ids_LTK, resident[layers[:, None, None], ids_LTK].sum(axis=(0, 2))


class LayerExperts:
    """One MoE layer's link to residency. `mode` "load" waits for missing experts; "reroute" never sees one."""

    def __init__(self, layer: int, *, residency: Residency, routing: StepRouting, mode: str) -> None:
        self.layer = layer
        self.residency = residency
        self.routing = routing
        self.mode = mode


class ResidentMask:
    """Which experts are resident, on the device, refreshed when residency has changed: no step waits for the host."""

    def __init__(self, residency: Residency, device: torch.device) -> None:
        self._residency = residency
        self._version = -1
        self._mask_LE = torch.zeros(residency.grid.shape, dtype=torch.bool, device=device)

    def refresh(self) -> None:
        """Between two steps."""
        if self._version != self._residency.version:
            self._mask_LE.copy_(torch.from_numpy(self._residency.table.resident), non_blocking=True)
            self._version = self._residency.version

    def layer(self, layer: int) -> torch.Tensor:
        return self._mask_LE[layer]


def experts_forward(
    module: torch.nn.Module, hidden_TD: torch.Tensor, topk_ids_TK: torch.Tensor, topk_weights_TK: torch.Tensor
) -> torch.Tensor:
    """hidden [T, D], ids [T, K], weights [T, K] -> [T, D]."""
    link: LayerExperts = module.emoe  # type: ignore[assignment]
    num_topk = topk_ids_TK.shape[1]
    out_RD = torch.empty(topk_ids_TK.numel(), hidden_TD.shape[1], dtype=hidden_TD.dtype, device=hidden_TD.device)
    rows_of = _rows_by_expert(topk_ids_TK)
    table, arena = link.residency.table.slot_of[link.layer], link.residency.arena
    if link.mode == "load":
        resident = table >= 0
        link.routing.record(link.layer, topk_ids_TK, resident[topk_ids_TK.cpu().numpy()].sum(axis=1))
        turns = link.residency.load_for(link.layer, rows_of)
    else:
        turns = iter([(list(rows_of), [])])
    for ready, failed in turns:
        for expert in ready:
            rows = rows_of[expert]
            out_RD[rows] = _expert(module, arena, int(table[expert]), hidden_TD[rows // num_topk])
        for expert in failed:
            out_RD[rows_of[expert]] = 0
            link.routing.failed_tokens.update((rows_of[expert] // num_topk).tolist())
    weighted_TKD = out_RD.view(*topk_ids_TK.shape, -1) * topk_weights_TK[..., None]
    return weighted_TKD.sum(dim=1).to(hidden_TD.dtype)


def _rows_by_expert(topk_ids_TK: torch.Tensor) -> dict[int, torch.Tensor]:
    """expert -> its rows in the flattened [T * K] choices, ascending."""
    sorted_ids, order = torch.sort(topk_ids_TK.reshape(-1), stable=True)
    ids = sorted_ids.cpu().numpy()
    starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
    return dict(zip(ids[starts].tolist(), order.tensor_split(starts[1:].tolist()), strict=True))


def _expert(module: torch.nn.Module, arena: SlotArena, slot: int, x_RD: torch.Tensor) -> torch.Tensor:
    """One expert on its rows, as the family's experts class would compute it."""
    up = "gate_up" if module.has_gate else "up"
    hidden = _linear(module, arena, slot, up, x_RD)
    hidden = module._apply_gate(hidden) if module.has_gate else module.act_fn(hidden)  # type: ignore[operator]
    return _linear(module, arena, slot, "down", hidden)


def _linear(module: torch.nn.Module, arena: SlotArena, slot: int, name: str, x: torch.Tensor) -> torch.Tensor:
    weight = arena.part(slot, name)
    bias = arena.part(slot, f"{name}_bias") if module.has_bias else None
    if module.is_transposed:
        return x @ weight if bias is None else torch.addmm(bias, x, weight)
    return F.linear(x, weight, bias)


def reroute_hook(family: Family, layer: int, mask: ResidentMask, routing: StepRouting):  # type: ignore[no-untyped-def]
    """A forward hook for a router: records what it wanted, and gives its choice among the residents instead."""

    def choose(router: torch.nn.Module, _args: object, output: tuple[torch.Tensor, torch.Tensor, torch.Tensor]):  # type: ignore[no-untyped-def]
        logits_TE, _, wanted_ids_TK = output
        routing.record(layer, wanted_ids_TK)
        return logits_TE, *family.reroute(router, logits_TE, mask.layer(layer))

    return choose


ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
