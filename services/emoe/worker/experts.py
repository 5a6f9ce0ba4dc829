"""The experts function that transformers calls in every MoE layer, and what it records of a step's routing.

Registered under the name `emoe`. It computes on views of slots, expert by expert; every expert's output goes to its
own row of a [T * K, D] buffer that is summed in the order of K, so the order in which experts arrive never shows.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from emoe.core.experts import BoolGrid
from emoe.core.slots import ABSENT
from emoe.worker.arena import SlotArena
from emoe.worker.families import Family
from emoe.worker.grouped import grouped_experts
from emoe.worker.residency import Residency

NAME = "emoe"
LINK = "emoe_layer"
"""The attribute of an experts module that holds its LayerExperts."""

WHOLE_ACTIVATION_ELEMENTS = 1 << 18


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
    """One MoE layer's link to residency. `mode` "load" waits for missing experts; "reroute" never sees one.

    `grouped`: compute by `grouped_experts`, which only reroute mode may.
    """

    def __init__(
        self,
        layer: int,
        *,
        residency: Residency,
        table: DeviceTable,
        routing: StepRouting,
        mode: str,
        grouped: bool = False,
    ) -> None:
        self.layer = layer
        self.residency = residency
        self.table = table
        self.routing = routing
        self.mode = mode
        self.grouped = grouped


class DeviceTable:
    """The slot table on the device, refreshed when residency has changed: no reroute step waits for the host."""

    def __init__(self, residency: Residency, device: torch.device) -> None:
        self._residency = residency
        self._version = -1
        self._slot_of_LE = torch.full(residency.grid.shape, ABSENT, dtype=torch.int32, device=device)

    def refresh(self) -> None:
        """Between two steps."""
        if self._version != self._residency.version:
            self._slot_of_LE.copy_(torch.from_numpy(self._residency.table.slot_of))
            self._resident_LE = self._slot_of_LE != ABSENT
            self._version = self._residency.version

    def resident(self, layer: int) -> torch.Tensor:
        """[E]"""
        return self._resident_LE[layer]

    def slots(self, layer: int) -> torch.Tensor:
        """[E], ABSENT for those that are not resident."""
        return self._slot_of_LE[layer]


def experts_forward(
    module: torch.nn.Module, hidden_TD: torch.Tensor, topk_ids_TK: torch.Tensor, topk_weights_TK: torch.Tensor
) -> torch.Tensor:
    """hidden [T, D], ids [T, K], weights [T, K] -> [T, D]."""
    link: LayerExperts = getattr(module, LINK)
    if link.grouped:
        slots_TK = link.table.slots(link.layer)[topk_ids_TK]
        return grouped_experts(module, link.residency.arena, hidden_TD, slots_TK, topk_weights_TK)
    groups = TokenGroups(topk_ids_TK)
    work = _Work(module, link.residency.arena, groups.gather(hidden_TD))
    table = link.residency.table.slot_of[link.layer]
    if link.mode == "load":
        link.routing.record(link.layer, topk_ids_TK, (table >= 0)[topk_ids_TK.cpu().numpy()].sum(axis=1))
        for ready, failed in link.residency.load_for(link.layer, groups.spans):
            work.run([(int(table[expert]), *groups.spans[expert]) for expert in ready])
            for expert in failed:
                _fail(link, groups, work, expert)
    else:
        present = {expert: span for expert, span in groups.spans.items() if table[expert] >= 0}
        work.run([(int(table[expert]), *span) for expert, span in present.items()])
        for expert in groups.spans.keys() - present.keys():  # only logits that are no numbers lead here
            _fail(link, groups, work, expert)
    weighted_TKD = groups.scatter(work.out_RD) * topk_weights_TK[..., None]
    return weighted_TKD.sum(dim=1).to(hidden_TD.dtype)


def _fail(link: LayerExperts, groups: TokenGroups, work: _Work, expert: int) -> None:
    """This expert's tokens get nothing of it, and their sequences end with the step."""
    start, stop = groups.spans[expert]
    work.out_RD[start:stop] = 0
    link.routing.failed_tokens.update(groups.tokens(start, stop))


class TokenGroups:
    """The step's R = T * K choices sorted by expert: `spans` says which rows are whose, ascending by expert."""

    def __init__(self, topk_ids_TK: torch.Tensor) -> None:
        self._shape = topk_ids_TK.shape
        sorted_ids, self._order = torch.sort(topk_ids_TK.reshape(-1), stable=True)
        ids = sorted_ids.cpu().numpy()
        edges = [0, *(np.flatnonzero(ids[1:] != ids[:-1]) + 1).tolist(), len(ids)]
        self.spans = {int(ids[start]): (start, stop) for start, stop in itertools.pairwise(edges)}

    def gather(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """[T, D] -> [R, D]"""
        return hidden_TD.index_select(0, self._order // self._shape[1])

    def scatter(self, out_RD: torch.Tensor) -> torch.Tensor:
        """[R, D] -> [T, K, D], in the order of the router's choices."""
        unsorted_RD = torch.empty_like(out_RD)
        unsorted_RD[self._order] = out_RD
        return unsorted_RD.view(*self._shape, -1)

    def tokens(self, start: int, stop: int) -> list[int]:
        return (self._order[start:stop] // self._shape[1]).tolist()


class _Work:
    """Buffers of one layer's call. Rows are [R, ...], sorted by expert; `run` fills `out_RD` for some experts' rows.

    Elementwise kernels may round a value differently by its place in a vector, so their shapes must not depend on
    which experts are resident: small calls activate the whole buffer every time, large ones expert by expert.
    """

    def __init__(self, module: Any, arena: SlotArena, x_RD: torch.Tensor) -> None:
        self._module = module
        self._arena = arena
        self._x_RD = x_RD
        self._up = "gate_up" if module.has_gate else "up"
        width = arena.stacked(self._up).shape[2 if module.is_transposed else 1]
        self._hidden_RF = x_RD.new_zeros(x_RD.shape[0], width)
        self._activates_whole = self._hidden_RF.numel() <= WHOLE_ACTIVATION_ELEMENTS
        self.out_RD = torch.empty_like(x_RD)

    def run(self, experts: list[tuple[int, int, int]]) -> None:
        """(slot, start, stop) of each expert."""
        for slot, start, stop in experts:
            self._linear(slot, self._up, self._x_RD[start:stop], self._hidden_RF[start:stop])
        active_RF = self._activate(self._hidden_RF) if self._activates_whole and experts else None
        for slot, start, stop in experts:
            rows = self._activate(self._hidden_RF[start:stop]) if active_RF is None else active_RF[start:stop]
            self._linear(slot, "down", rows, self.out_RD[start:stop])

    def _activate(self, hidden: torch.Tensor) -> torch.Tensor:
        active: torch.Tensor = (
            self._module._apply_gate(hidden) if self._module.has_gate else self._module.act_fn(hidden)
        )
        return active

    def _linear(self, slot: int, name: str, x: torch.Tensor, out: torch.Tensor) -> None:
        weight = self._arena.part(slot, name)
        if not self._module.is_transposed:
            weight = weight.t()
        if self._module.has_bias:
            torch.addmm(self._arena.part(slot, f"{name}_bias"), x, weight, out=out)
        else:
            torch.mm(x, weight, out=out)


def reroute_hook(family: Family, layer: int, table: DeviceTable, routing: StepRouting):  # type: ignore[no-untyped-def]
    """A forward hook for a router: records what it wanted, and gives its choice among the residents instead."""

    def choose(router: torch.nn.Module, _args: object, output: tuple[torch.Tensor, torch.Tensor, torch.Tensor]):  # type: ignore[no-untyped-def]
        logits_TE, _, wanted_ids_TK = output
        routing.record(layer, wanted_ids_TK)
        return logits_TE, *family.reroute(router, logits_TE, table.resident(layer))

    return choose


ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
