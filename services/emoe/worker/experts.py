"""The experts function that transformers calls in every MoE layer, registered under the name `emoe`.

It computes on slots (`expert_weights`), expert by expert; every choice's output goes to a row of its own, and rows are
summed in the order of K, so the order in which experts arrive never shows. T tokens, K choices, P rows, D hidden,
F intermediate.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from emoe.core.experts import ExpertId
from emoe.core.slots import ABSENT
from emoe.worker.expert_weights import ExpertWeights
from emoe.worker.grouped import SlotStack, grouped_experts
from emoe.worker.lookahead import NextLayer
from emoe.worker.residency import Residency
from emoe.worker.routing import DeviceTable, StepRouting
from emoe.worker.token_groups import TokenGroups

NAME = "emoe"
LINK = "emoe_layer"
"""The attribute of an experts module that holds its LayerExperts."""

WHOLE_ACTIVATION_ELEMENTS = 1 << 18


class LayerExperts:
    """One MoE layer's link to residency. `mode` "load" waits for missing experts; "reroute" never sees one.

    `grouped`: what `grouped_experts` computes from, in reroute mode alone, as far as it takes a step.
    """

    def __init__(
        self,
        layer: int,
        *,
        residency: Residency,
        weights: ExpertWeights,
        table: DeviceTable,
        routing: StepRouting,
        mode: str,
        grouped: SlotStack | None = None,
        following: NextLayer | None = None,
    ) -> None:
        self.layer = layer
        self.residency = residency
        self.weights = weights
        self.table = table
        self.routing = routing
        self.mode = mode
        self.grouped = grouped
        self.following = following

    def foretell(self, hidden_TD: torch.Tensor) -> list[ExpertId]:
        return [] if self.following is None else self.following.foretell(hidden_TD)


def experts_forward(
    module: torch.nn.Module, hidden_TD: torch.Tensor, topk_ids_TK: torch.Tensor, topk_weights_TK: torch.Tensor
) -> torch.Tensor:
    """hidden [T, D], ids [T, K], weights [T, K] -> [T, D]."""
    link: LayerExperts = getattr(module, LINK)
    if link.grouped is not None and link.grouped.takes(topk_ids_TK.numel()):
        slots_TK = link.table.slots(link.layer)[topk_ids_TK]
        return grouped_experts(module, link.grouped, link.residency.arena, hidden_TD, slots_TK, topk_weights_TK)
    groups = TokenGroups(topk_ids_TK, rounded=_compiles_by_rows(hidden_TD))
    work = _Work(module, link.weights, groups.gather(hidden_TD), groups.sizes)
    table = link.residency.table.slot_of[link.layer]
    if link.mode == "load":
        link.routing.record(link.layer, topk_ids_TK, (table[groups.ids_TK] != ABSENT).sum(axis=1))
        for ready, failed in link.residency.load_for(link.layer, groups.num_tokens, lambda: link.foretell(hidden_TD)):
            work.run([(int(table[expert]), groups.position[expert]) for expert in ready])
            for expert in failed:
                _fail(link, groups, work, expert)
    else:
        slots = {expert: int(table[expert]) for expert in groups.position}
        work.run([(slot, groups.position[expert]) for expert, slot in slots.items() if slot != ABSENT])
        for expert, slot in slots.items():
            if slot == ABSENT:  # only logits that are no numbers lead here
                _fail(link, groups, work, expert)
    weighted_TKD = groups.scatter(work.out_PD) * topk_weights_TK[..., None]
    return weighted_TKD.sum(dim=1).to(hidden_TD.dtype)


def _fail(link: LayerExperts, groups: TokenGroups, work: _Work, expert: int) -> None:
    """This expert's tokens get nothing of it, and their sequences end with the step."""
    work.clear(groups.position[expert])
    link.routing.failed_tokens.update(groups.tokens(expert))


def _compiles_by_rows(hidden_TD: torch.Tensor) -> bool:
    """16-bit products on a CPU go to oneDNN; float32 ones do not, and keep their rows."""
    return hidden_TD.device.type == "cpu" and hidden_TD.dtype is not torch.float32


class _Work:
    """Buffers of one layer's call, a span of rows an expert; `run` fills the spans of some experts in `out_PD`.

    Elementwise kernels may round a value differently by its place in a vector, so their shapes must not depend on
    which experts are resident: small calls activate the whole buffer every time, large ones expert by expert.
    """

    def __init__(self, module: Any, weights: ExpertWeights, x_PD: torch.Tensor, sizes: list[int]) -> None:
        self._module = module
        self._weights = weights
        self._sizes = sizes
        self._x = x_PD.split(sizes)
        self._up = "gate_up" if module.has_gate else "up"
        self._hidden_PF = x_PD.new_zeros(x_PD.shape[0], weights.width(self._up))
        self._activates_whole = self._hidden_PF.numel() <= WHOLE_ACTIVATION_ELEMENTS
        self._hidden = self._hidden_PF.split(sizes)
        self.out_PD = torch.empty(x_PD.shape, dtype=x_PD.dtype, device=x_PD.device)
        self._out = self.out_PD.split(sizes)

    def run(self, experts: list[tuple[int, int]]) -> None:
        """(slot, span) of each expert."""
        for slot, span in experts:
            self._weights.linear(slot, self._up, self._x[span], self._hidden[span])
        active = self._activate(self._hidden_PF).split(self._sizes) if self._activates_whole and experts else None
        for slot, span in experts:
            rows = self._activate(self._hidden[span]) if active is None else active[span]
            self._weights.linear(slot, "down", rows, self._out[span])

    def clear(self, span: int) -> None:
        self._out[span].zero_()

    def _activate(self, hidden: torch.Tensor) -> torch.Tensor:
        active: torch.Tensor = (
            self._module._apply_gate(hidden) if self._module.has_gate else self._module.act_fn(hidden)
        )
        return active


ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
