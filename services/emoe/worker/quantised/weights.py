"""Products with quantised experts: slots keep what was published, and what a product needs is decoded when it does.

A weight is decoded a run of rows at a time into one small buffer that stays in the processor's cache, and multiplied
from there, so memory beside the slots is bounded whatever the expert's size. Where torch has a product that takes the
codes as they are, that is used. P rows of x, R outputs, C inputs.
"""

from __future__ import annotations

import torch

from emoe.store.layout import ExpertLayout
from emoe.store.quantisation import Component, Quantisation, part_name
from emoe.worker.arena import SlotArena
from emoe.worker.quantised.numbers import NUMBERS, Parts
from emoe.worker.quantised.tables import Scratch

CPU_RUN_BYTES = 1 << 20
"""Decoded at a time on a CPU: what fits a core's own cache beside the codes."""
GPU_RUN_BYTES = 1 << 26
"""On a GPU, where every run is several kernels."""

VECTOR_BYTES = 16
MAX_CODE_ROWS = 32
"""Rows of x above which decoding once and multiplying costs less than torch's product with codes: measured, 2048 x 2048
on one core, 1.6 ms for 32 rows against 0.8 and the decoding."""


class QuantisedWeights:
    """The `ExpertWeights` of every quantised checkpoint: what differs between them is in `numbers`."""

    def __init__(
        self, arena: SlotArena, quantisation: Quantisation, *, dtype: torch.dtype, device: torch.device, has_bias: bool
    ) -> None:
        self._arena = arena
        self._components = quantisation.components
        self._numbers = NUMBERS[quantisation.scheme](quantisation)
        self._dtype = dtype
        self._device = device
        self._has_bias = has_bias
        self._scratch = Scratch()
        self._run_bytes = CPU_RUN_BYTES if device.type == "cpu" else GPU_RUN_BYTES
        names = {part.name for part in arena.layout.parts}
        self._takes_codes = _takes_codes(quantisation, arena.layout, dtype=dtype, device=device)
        self._shapes = {
            name: quantisation.weight_shape(tuple(arena.stacked(part_name(name, "codes")).shape[1:]))
            for name in ("gate", "up", "gate_up", "down")
            if part_name(name, "codes") in names
        }
        self._pieces: dict[str, tuple[str, ...]] = {name: (name,) for name in self._shapes}
        if "gate" in self._shapes:
            self._pieces["gate_up"] = ("gate", "up")

    def width(self, name: str) -> int:
        return sum(self._shapes[piece][0] for piece in self._pieces[name])

    def linear(self, slot: int, name: str, x_PC: torch.Tensor, out_PR: torch.Tensor) -> None:
        bias_R = self._arena.part(slot, f"{name}_bias").to(self._dtype) if self._has_bias else None
        first = 0
        for piece in self._pieces[name]:
            last = first + self._shapes[piece][0]
            self._product(
                self._parts(slot, piece), x_PC, out_PR[:, first:last], None if bias_R is None else bias_R[first:last]
            )
            first = last

    def weight(self, slot: int, name: str) -> torch.Tensor:
        """[R, C], decoded as a whole: for tests and tools, never for a step."""
        weight = torch.empty(self._shapes[name], dtype=self._dtype, device=self._device)
        self._numbers.decode(self._parts(slot, name), 0, weight)
        return weight

    def _parts(self, slot: int, piece: str) -> dict[Component, torch.Tensor]:
        return {component: self._arena.part(slot, part_name(piece, component)) for component in self._components}

    def _product(self, parts: Parts, x_PC: torch.Tensor, out_PR: torch.Tensor, bias_R: torch.Tensor | None) -> None:
        if self._takes_codes and bias_R is None and x_PC.shape[0] <= MAX_CODE_ROWS:
            out_PR.copy_(torch.ops.aten._weight_int8pack_mm(x_PC, parts["codes"], parts["scales"].reshape(-1)))
            return
        num_rows, num_columns = out_PR.shape[1], x_PC.shape[1]
        step = self._numbers.row_step
        run = max(1, self._run_bytes // (num_columns * self._dtype.itemsize * step)) * step
        for begin in range(0, num_rows, run):
            end = min(begin + run, num_rows)
            flat = self._scratch.take("rows", (end - begin) * num_columns, self._dtype, self._device)
            weight_NC = flat.view(end - begin, num_columns)
            self._numbers.decode(parts, begin, weight_NC)
            if bias_R is None:
                torch.mm(x_PC, weight_NC.t(), out=out_PR[:, begin:end])
            else:
                torch.addmm(bias_R[begin:end], x_PC, weight_NC.t(), out=out_PR[:, begin:end])


def _takes_codes(quantisation: Quantisation, layout: ExpertLayout, *, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether torch multiplies by the codes themselves: bytes with a scale a row, in bfloat16 on a CPU.

    Its kernel reads whole vectors from where they must be aligned, and ends the process where they are not.
    """
    if (quantisation.scheme, quantisation.block) != ("int8", (1, 0)) or device.type != "cpu":
        return False
    codes = [part for part in layout.parts if part.name.endswith("_codes")]
    aligned = all(part.offset % VECTOR_BYTES == 0 and part.shape[1] % VECTOR_BYTES == 0 for part in codes)
    return aligned and dtype is torch.bfloat16 and layout.parts[0].dtype == "BF16"
