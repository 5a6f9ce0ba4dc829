"""The experts of one layer as two grouped matrix products straight from the slots: no host synchronisation.

What a GPU runs in reroute mode, where every choice is resident by construction, so a step may sit in a CUDA graph.
On a CPU it gives the same numbers as the loop in `experts`, which is how it is tested without a GPU.
T tokens, K choices a token, R = T * K rows, S slots, G groups of rows, D hidden, C inputs, O outputs.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from emoe.worker.arena import SlotArena

MAX_GROUPS = 1023
"""torch's CUDA kernel takes fewer than 1024 groups, and every slot is one."""
MAX_ROWS_IN_TURNS = 2048
"""A larger arena takes several turns, each of which multiplies the rows of those before it again, to no use: more rows
than these are left to the loop."""


@dataclasses.dataclass(frozen=True)
class Groups:
    """Sorted rows, a group a weight. `row_slots` [R] ascending; `slots` [G], None where every slot is a group; `ends`
    [G] int32, where each group's rows end."""

    row_slots: torch.Tensor
    slots: torch.Tensor | None
    ends: torch.Tensor


class SlotStack(Protocol):
    """What a grouped product multiplies by."""

    def takes(self, num_rows: int) -> bool:
        """Whether a step of so many choices may be computed by it; the loop does the others."""
        ...

    def group(self, slots_R: torch.Tensor) -> Groups:
        """`slots_R` ascending."""
        ...

    def linear(self, name: str, rows_RC: torch.Tensor, groups: Groups) -> torch.Tensor:
        """[R, O], without bias."""
        ...


class PlainStack:
    """Weights as torch reads them, in place. `transposed`: stored as [in, out] (gpt-oss)."""

    def __init__(self, arena: SlotArena, *, transposed: bool) -> None:
        self._arena = arena
        self._transposed = transposed

    def takes(self, num_rows: int) -> bool:
        return self._arena.num_slots <= MAX_GROUPS or num_rows <= MAX_ROWS_IN_TURNS

    def group(self, slots_R: torch.Tensor) -> Groups:
        slots_S = torch.arange(self._arena.num_slots, device=slots_R.device, dtype=slots_R.dtype)
        return Groups(slots_R, None, torch.searchsorted(slots_R, slots_S, right=True).to(torch.int32))

    def linear(self, name: str, rows_RC: torch.Tensor, groups: Groups) -> torch.Tensor:
        stacked = self._arena.stacked(name)
        weight_SCO = stacked if self._transposed else stacked.transpose(-2, -1)
        out_RO = F.grouped_mm(rows_RC, weight_SCO[:MAX_GROUPS], offs=groups.ends[:MAX_GROUPS])
        for first in range(MAX_GROUPS, self._arena.num_slots, MAX_GROUPS):
            turn = slice(first, first + MAX_GROUPS)
            of_turn_RO = F.grouped_mm(rows_RC, weight_SCO[turn], offs=groups.ends[turn])
            # Earlier rows were counted to this turn's first slot, and later ones are not written at all.
            out_RO = torch.where(groups.row_slots[:, None] >= first, of_turn_RO, out_RO)
        return out_RO


def can_group(arena: SlotArena, device: torch.device) -> bool:
    """Whether plain slots are what the device's kernel takes."""
    return device.type == "cuda" and arena.dtype is torch.bfloat16


def grouped_experts(
    module: Any,
    stack: SlotStack,
    arena: SlotArena,
    hidden_TD: torch.Tensor,
    slots_TK: torch.Tensor,
    weights_TK: torch.Tensor,
) -> torch.Tensor:
    """hidden [T, D], the slot of every choice [T, K], weights [T, K] -> [T, D]."""
    sorted_slots_R, order_R = torch.sort(slots_TK.reshape(-1), stable=True)
    groups = stack.group(sorted_slots_R)
    up = "gate_up" if module.has_gate else "up"
    rows_RD = hidden_TD.index_select(0, order_R // slots_TK.shape[1])
    rows_RF = _biased(module, arena, up, stack.linear(up, rows_RD, groups), sorted_slots_R)
    rows_RF = module._apply_gate(rows_RF) if module.has_gate else module.act_fn(rows_RF)
    rows_RD = _biased(module, arena, "down", stack.linear("down", rows_RF, groups), sorted_slots_R)
    unsorted_RD = torch.empty_like(rows_RD)
    unsorted_RD[order_R] = rows_RD
    weighted_TKD = unsorted_RD.view(*slots_TK.shape, -1) * weights_TK[..., None]
    return weighted_TKD.sum(dim=1).to(hidden_TD.dtype)


def _biased(module: Any, arena: SlotArena, name: str, out_RO: torch.Tensor, slots_R: torch.Tensor) -> torch.Tensor:
    return out_RO + arena.stacked(f"{name}_bias")[slots_R].to(out_RO.dtype) if module.has_bias else out_RO
