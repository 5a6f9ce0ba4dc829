"""The slot arena: one preallocated block of device memory, cut into expert-sized slots.

A slot holds one expert's bytes exactly as the checkpoint publishes them, or with some weights in oneDNN's order, which
takes as many (`packed_weights`); the model sees views into it. The arena knows neither which expert is where
(`core.slots`) nor where bytes come from (`sources`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from emoe.core.budget import SLOT_ALIGNMENT_BYTES
from emoe.worker.onednn import PackedOrder, view_as_packed

if TYPE_CHECKING:
    from emoe.store.layout import ExpertLayout, ExpertPart

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
SLOT_DTYPES = DTYPES | {"F8_E4M3": torch.float8_e4m3fn, "U8": torch.uint8, "I8": torch.int8, "I32": torch.int32}
"""Also what quantised experts are made of."""


class SlotArena:
    """S slots. `bytes_of(slot)` is what a transfer writes, `part(slot, name)` what the model reads."""

    def __init__(
        self,
        layout: ExpertLayout,
        *,
        num_slots: int,
        slot_bytes: int,
        device: torch.device,
        packed: Mapping[str, PackedOrder] | None = None,
    ) -> None:
        """`slot_bytes` is at least the expert's, and a multiple of the alignment. `packed`: the parts, by name, that
        whoever fills a slot leaves in another order."""
        self.num_slots = num_slots
        self.layout = layout
        self.packed = dict(packed or {})
        self.slots_SB = torch.empty(num_slots, slot_bytes, dtype=torch.uint8, device=device)
        assert self.slots_SB.data_ptr() % SLOT_ALIGNMENT_BYTES == 0, "torch aligns what it allocates"
        dtypes = {SLOT_DTYPES[part.dtype] for part in layout.parts}
        self.dtype: torch.dtype | None = dtypes.pop() if len(dtypes) == 1 else None
        """Of all parts; None where they differ, as those of quantised experts do."""
        self._views = {part.name: self._view(part, slot_bytes) for part in merged_parts(layout)}
        self._rows = {name: self._each(name, view) for name, view in self._views.items()}

    def _view(self, part: ExpertPart, slot_bytes: int) -> torch.Tensor:
        dtype = SLOT_DTYPES[part.dtype]
        assert part.offset % dtype.itemsize == 0, f"{part} is not aligned"
        return torch.as_strided(
            self.slots_SB.view(dtype),
            (self.num_slots, *part.shape),
            (slot_bytes // dtype.itemsize, *_contiguous_strides(part.shape)),
            part.offset // dtype.itemsize,
        )

    def _each(self, name: str, view: torch.Tensor) -> tuple[torch.Tensor, ...]:
        order = self.packed.get(name)
        rows = view.unbind()
        return rows if order is None else tuple(view_as_packed(row, order) for row in rows)

    @property
    def num_bytes(self) -> int:
        return self.slots_SB.nbytes

    def bytes_of(self, slot: int) -> torch.Tensor:
        return self.slots_SB[slot, : self.layout.num_bytes]

    def part(self, slot: int, name: str) -> torch.Tensor:
        """A typed view; of what is packed an opaque one, for oneDNN alone."""
        return self._rows[name][slot]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a part as published."""
        return tuple(self._views[name].shape[1:])

    def stacked(self, name: str) -> torch.Tensor:
        """[S, ...]: all slots of one part, strided; for grouped products on a GPU."""
        assert name not in self.packed, f"{name} lies in oneDNN's order, which is no strided one"
        return self._views[name]


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def merged_parts(layout: ExpertLayout) -> list[ExpertPart]:
    """Parts by name; `gate` [F, D] followed by `up` [F, D] is `gate_up` [2F, D] with no byte moved."""
    parts = {part.name: part for part in layout.parts}
    for suffix in ("", "_bias"):
        if f"gate{suffix}" not in parts:
            continue
        gate, up = parts.pop(f"gate{suffix}"), parts.pop(f"up{suffix}")
        if gate.offset + gate.num_bytes != up.offset:
            raise AssertionError(f"gate and up of an expert must lie end to end, got {gate} and {up}")
        name = f"gate_up{suffix}"
        shape = (gate.shape[0] + up.shape[0], *gate.shape[1:])
        parts[name] = dataclasses.replace(gate, name=name, shape=shape, num_bytes=gate.num_bytes + up.num_bytes)
    return list(parts.values())
