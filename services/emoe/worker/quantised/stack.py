"""Grouped products with quantised experts: the slots that a step uses are decoded side by side and multiplied at once.

As many weights are decoded as a step has choices, or a layer experts, whichever is less: a number that the host knows,
so nothing waits for the device. Their memory is bounded and set aside at the start, for recorded steps point to it.
It reads codes and writes numbers only to read them again, some nine times the bytes of a kernel that decodes while it
multiplies (torch's `_scaled_grouped_mm` for fp8 by rows, Triton's for MXFP4). R rows of x, G weights, O rows of one.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from emoe.store.quantisation import WORD_BITS, Component, Quantisation, part_name
from emoe.worker.arena import SlotArena
from emoe.worker.grouped import MAX_GROUPS, Groups
from emoe.worker.quantised.numbers import NUMBERS

SCRATCH_BYTES = 2 << 30
"""For decoded weights and what decoding takes beside them, at most; more choices than fit are left to the loop."""
BYTES_A_NUMBER = 10
"""Of scratch: the number itself, in two bytes, a float32 copy and 32-bit places at the most."""


class QuantisedStack:
    """`takes` nothing where a weight's rows do not end with its blocks or words: then weights cannot stand in a row."""

    def __init__(
        self,
        arena: SlotArena,
        quantisation: Quantisation,
        *,
        dtype: torch.dtype,
        num_experts: int,
        scratch_bytes: int = SCRATCH_BYTES,
    ) -> None:
        self._arena = arena
        self._quantisation = quantisation
        self._numbers = NUMBERS[quantisation.scheme](quantisation)
        self._num_experts = num_experts
        parts = {part.name for part in arena.layout.parts}
        self._shapes = {
            name: quantisation.weight_shape(tuple(arena.stacked(part_name(name, "codes")).shape[1:]))
            for name in ("gate", "up", "gate_up", "down")
            if part_name(name, "codes") in parts
        }
        self._pieces = {name: (name,) for name in self._shapes} | (
            {"gate_up": ("gate", "up")} if "gate" in self._shapes else {}
        )
        largest = max(sum(self._shapes[piece][0] for piece in pieces) * self._shapes[pieces[0]][1]
                      for pieces in self._pieces.values())  # fmt: skip
        fitting = min(num_experts, MAX_GROUPS, scratch_bytes // (largest * BYTES_A_NUMBER))
        self.max_groups = fitting if all(map(self._stands_in_a_row, self._shapes.values())) else 0
        self._weights = torch.empty(self.max_groups * largest, dtype=dtype, device=arena.slots_SB.device)
        if self.max_groups:
            self._take_scratch()

    def takes(self, num_rows: int) -> bool:
        return min(num_rows, self._num_experts) <= self.max_groups

    def group(self, slots_R: torch.Tensor) -> Groups:
        num_groups = min(len(slots_R), self._num_experts)
        new_R = torch.ones_like(slots_R)
        new_R[1:] = slots_R[1:] != slots_R[:-1]
        group_R = new_R.cumsum(0) - 1
        slots_G = torch.zeros(num_groups, dtype=torch.int64, device=slots_R.device)
        slots_G.scatter_(0, group_R, slots_R.clamp_min(0).long())
        places_G = torch.arange(num_groups, device=slots_R.device)
        return Groups(slots_R, slots_G, torch.searchsorted(group_R, places_G, right=True).to(torch.int32))

    def linear(self, name: str, rows_RC: torch.Tensor, groups: Groups) -> torch.Tensor:
        assert groups.slots is not None, "groups are of this stack's making"
        pieces = [self._decoded(piece, groups.slots, place) for place, piece in self._placed(name)]
        outs = [F.grouped_mm(rows_RC, weight_GOC.transpose(-2, -1), offs=groups.ends) for weight_GOC in pieces]
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)

    def _placed(self, name: str) -> list[tuple[int, str]]:
        """Where in the scratch each piece's weights begin, and the piece."""
        placed, place = [], 0
        for piece in self._pieces[name]:
            placed.append((place, piece))
            place += self.max_groups * self._shapes[piece][0] * self._shapes[piece][1]
        return placed

    def _decoded(self, piece: str, slots_G: torch.Tensor, place: int) -> torch.Tensor:
        """[G, O, C]: all weights as one tall one."""
        num_rows, num_columns = self._shapes[piece]
        size = len(slots_G) * num_rows * num_columns
        tall = self._weights[place : place + size].view(-1, num_columns)
        parts = {c: self._in_a_row(piece, c, slots_G) for c in self._quantisation.components}
        self._numbers.decode(parts, 0, tall)
        return tall.view(len(slots_G), num_rows, num_columns)

    def _in_a_row(self, piece: str, component: Component, slots_G: torch.Tensor) -> torch.Tensor:
        stacked = self._arena.stacked(part_name(piece, component))
        dtype = stacked.dtype
        raw = stacked.view(torch.uint8) if dtype is torch.float8_e4m3fn else stacked
        gathered = raw.index_select(0, slots_G).view(dtype)
        if self._quantisation.scheme == "gptq":
            return gathered.permute(1, 0, 2).flatten(1, 2)
        if component == "scales" and self._quantisation.scheme != "mxfp4" and not self._quantisation.block[0]:
            columns = gathered.reshape(len(slots_G), 1, -1)
            gathered = columns.expand(-1, self._shapes[piece][0], -1)
        return gathered.flatten(0, 1)

    def _stands_in_a_row(self, shape: tuple[int, int]) -> bool:
        has_packed_rows = "zeros" in self._quantisation.components
        return shape[0] % self._numbers.row_step == 0 and not (
            has_packed_rows and shape[0] * self._quantisation.bits % WORD_BITS
        )

    def _take_scratch(self) -> None:
        """Scratch grows to the largest it was asked for; from here on it stays where it is."""
        slots_G = torch.zeros(self.max_groups, dtype=torch.int64, device=self._weights.device)
        for name in self._pieces:
            for place, piece in self._placed(name):
                self._decoded(piece, slots_G, place)
