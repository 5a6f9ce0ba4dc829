"""The experts of one layer as two grouped matrix products straight from the slots: no host synchronisation.

What a GPU runs in reroute mode, where every choice is resident by construction, so a step may sit in a CUDA graph.
On a CPU it gives the same numbers as the loop in `experts`, which is how it is tested without a GPU.
T tokens, K choices a token, R = T * K rows, S slots, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from emoe.worker.arena import SlotArena

MAX_GROUPS = 1023
"""torch's CUDA kernel takes fewer than 1024 groups, and every slot is one; a larger arena runs the loop."""


def can_group(arena: SlotArena, device: torch.device) -> bool:
    return device.type == "cuda" and arena.dtype is torch.bfloat16 and arena.num_slots <= MAX_GROUPS


def grouped_experts(
    module: Any, arena: SlotArena, hidden_TD: torch.Tensor, slots_TK: torch.Tensor, weights_TK: torch.Tensor
) -> torch.Tensor:
    """hidden [T, D], the slot of every choice [T, K], weights [T, K] -> [T, D]."""
    num_topk = slots_TK.shape[1]
    sorted_slots_R, order_R = torch.sort(slots_TK.reshape(-1), stable=True)
    slots_S = torch.arange(arena.num_slots, device=slots_TK.device, dtype=sorted_slots_R.dtype)
    offsets_S = torch.searchsorted(sorted_slots_R, slots_S, right=True).to(torch.int32)
    up = "gate_up" if module.has_gate else "up"
    rows_RF = _linear(module, arena, up, hidden_TD.index_select(0, order_R // num_topk), offsets_S, sorted_slots_R)
    rows_RF = module._apply_gate(rows_RF) if module.has_gate else module.act_fn(rows_RF)
    rows_RD = _linear(module, arena, "down", rows_RF, offsets_S, sorted_slots_R)
    unsorted_RD = torch.empty_like(rows_RD)
    unsorted_RD[order_R] = rows_RD
    weighted_TKD = unsorted_RD.view(*slots_TK.shape, -1) * weights_TK[..., None]
    return weighted_TKD.sum(dim=1).to(hidden_TD.dtype)


def _linear(
    module: Any, arena: SlotArena, name: str, rows_R: torch.Tensor, offsets_S: torch.Tensor, slots_R: torch.Tensor
) -> torch.Tensor:
    weight = arena.stacked(name)
    out = F.grouped_mm(rows_R, weight if module.is_transposed else weight.transpose(-2, -1), offs=offsets_S)
    return out + arena.stacked(f"{name}_bias")[slots_R] if module.has_bias else out
