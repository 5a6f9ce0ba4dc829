"""Slots whose weights lie in oneDNN's order: filled by `PackingTransfer`, read by `PackedWeights`.

For bfloat16 on a CPU, in reroute mode (`build` has the rule): products of two to some thirty rows an expert cost a half
of a plain weight's. Slots are as large as before; packing takes a few megabytes a loading thread, part of what
`core.capacity` leaves as work space.
Biases, transposed weights (gpt-oss) and those whose sides oneDNN would pad stay plain. P rows, R outputs, C inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from emoe.core.budget import SLOT_ALIGNMENT_BYTES
from emoe.worker import onednn
from emoe.worker.arena import SlotArena, merged_parts
from emoe.worker.expert_weights import PlainWeights
from emoe.worker.onednn import PackedOrder

if TYPE_CHECKING:
    from emoe.core.experts import ExpertId
    from emoe.store.layout import ExpertLayout
    from emoe.worker.transfer import Transfer


def orders_of(layout: ExpertLayout) -> dict[str, PackedOrder]:
    """Of the weights that can be packed where they lie, by name; nothing where packing does not work or pay."""
    if not onednn.can_pack():
        return {}
    orders: dict[str, PackedOrder] = {}
    for part in merged_parts(layout):
        if part.dtype == "BF16" and len(part.shape) == 2 and part.offset % SLOT_ALIGNMENT_BYTES == 0:
            orders[part.name] = onednn.packed_order(*part.shape)
    return {name: order for name, order in orders.items() if order.fits_in_place}


class PackedWeights:
    """Products on slots of an arena with packed parts; never of a family that stores [in, out]."""

    def __init__(self, arena: SlotArena, *, has_bias: bool) -> None:
        self._arena = arena
        self._packed = frozenset(arena.packed)
        self._plain = PlainWeights(arena, transposed=False, has_bias=has_bias)
        self._has_bias = has_bias

    def width(self, name: str) -> int:
        return self._plain.width(name)

    def linear(self, slot: int, name: str, x_PC: torch.Tensor, out_PR: torch.Tensor) -> None:
        """torch takes no buffer for such a product: its rows are copied, which costs a hundredth of it."""
        if name not in self._packed:
            self._plain.linear(slot, name, x_PC, out_PR)
            return
        bias_R = self._arena.part(slot, f"{name}_bias") if self._has_bias else None
        out_PR.copy_(onednn.linear(x_PC, self._arena.part(slot, name), bias_R))


class PackingTransfer:
    """What `transfer` left in a slot becomes packed on the same thread, before anybody may read it."""

    def __init__(self, transfer: Transfer, layout: ExpertLayout, packed: dict[str, PackedOrder]) -> None:
        self._transfer = transfer
        self._parts = [(part, packed[part.name]) for part in merged_parts(layout) if part.name in packed]

    def fence(self) -> Any:
        return self._transfer.fence()

    def load(self, expert: ExpertId, slot: torch.Tensor, fence: Any) -> Callable[[], None]:
        ready = self._transfer.load(expert, slot, fence)
        for part, order in self._parts:
            weight = slot[part.offset : part.offset + part.num_bytes].view(torch.bfloat16).view(part.shape)
            onednn.pack_in_place(weight, order)
        return ready
