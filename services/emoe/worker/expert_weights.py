"""How an experts call gets from a slot's bytes to a product (the `ExpertWeights` seam), and the plain case of it.

One implementation for weights as torch reads them, here; one for those in oneDNN's order, in `packed_weights`; one for
quantised ones, in `quantised.weights`. Knows slots and nothing of tokens, routing or residency. P rows, R outputs,
C inputs.
"""

from __future__ import annotations

from typing import Protocol

import torch

from emoe.worker.arena import SlotArena


class ExpertWeights(Protocol):
    def width(self, name: str) -> int:
        """How many outputs `name` ("gate_up", "up", "down") has."""
        ...

    def linear(self, slot: int, name: str, x_PC: torch.Tensor, out_PR: torch.Tensor) -> None:
        """Fills `out_PR` with x times the slot's weight, and its bias where the family has one."""
        ...


class PlainWeights:
    """Products on views of the slots: no byte is copied. `transposed`: stored as [in, out] (gpt-oss)."""

    def __init__(self, arena: SlotArena, *, transposed: bool, has_bias: bool) -> None:
        self._arena = arena
        self._transposed = transposed
        self._has_bias = has_bias

    def width(self, name: str) -> int:
        return self._arena.shape(name)[1 if self._transposed else 0]

    def linear(self, slot: int, name: str, x_PC: torch.Tensor, out_PR: torch.Tensor) -> None:
        weight = self._arena.part(slot, name)
        if not self._transposed:
            weight = weight.t()
        if self._has_bias:
            torch.addmm(self._arena.part(slot, f"{name}_bias"), x_PC, weight, out=out_PR)
        else:
            torch.mm(x_PC, weight, out=out_PR)
