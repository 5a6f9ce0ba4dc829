"""How a checkpoint's linear weights are quantised, by its config.json: which tensors stand for a weight, in what form.

Read where families are told apart: a way of quantising that emoe cannot page is refused from here by name, before any
weight file is needed. Knows shapes and dtypes; how numbers come of them is the worker's.

A weight [R, C] is published as codes, scales and, where zeros differ, zeros; each has a leaf of its own in the key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from emoe.store.tensors import DTYPE_BITS

Scheme = Literal["mxfp4", "fp8", "int8", "packed", "gptq"]
Component = Literal["codes", "scales", "zeros"]
FLOATS = frozenset({"F32", "BF16", "F16"})
WORD_BITS = 32
MX_BLOCK = 32
"""Values that share a scale: OCP Microscaling Formats 1.0, section 5.2."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """What one published tensor of a weight must be. Several `shapes` where publishers differ."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: frozenset[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantisation:
    """`block` values share a scale, (rows, columns); 0 stands for a whole axis. `leaves`: the end of a published key ->
    what it is; None for a tensor that says nothing which the configuration does not."""

    scheme: Scheme
    label: str
    bits: int
    block: tuple[int, int]
    leaves: Mapping[str, Component | None]
    zero_offset: int = 0
    """Added to every stored zero (GPTQ's first format stores one less)."""

    @property
    def components(self) -> tuple[Component, ...]:
        return tuple(component for component in self.leaves.values() if component is not None)

    def leaf(self, component: Component) -> str:
        return next(leaf for leaf, found in self.leaves.items() if found == component)

    def forms(self, num_rows: int, num_columns: int) -> dict[Component, Form]:
        """Of a weight [rows, columns], as torch.nn.Linear has it."""
        grid = _grid((num_rows, num_columns), self.block)
        if self.scheme == "mxfp4":
            return {"codes": _form("U8", (*grid, MX_BLOCK // 2)), "scales": _form("U8", grid)}
        words = -(-num_columns * self.bits // WORD_BITS)
        if self.scheme == "gptq":
            return {
                "codes": _form("I32", (words, num_rows)),
                "scales": Form(shapes=((grid[1], num_rows),), dtypes=FLOATS),
                "zeros": _form("I32", (grid[1], num_rows * self.bits // WORD_BITS)),
            }
        scalars = ((), (1,)) if grid == (1, 1) else ()
        vectors = ((num_rows,),) if grid == (num_rows, 1) else ()
        scales = Form(shapes=(grid, *scalars, *vectors), dtypes=FLOATS)
        if self.scheme == "packed":
            packed = {"codes": _form("I32", (num_rows, words)), "scales": scales}
            if "zeros" in self.components:
                packed["zeros"] = _form("I32", (-(-num_rows * self.bits // WORD_BITS), grid[1]))
            return packed  # type: ignore[return-value]
        return {"codes": _form("F8_E4M3" if self.scheme == "fp8" else "I8", (num_rows, num_columns)), "scales": scales}

    def weight_shape(self, codes: tuple[int, ...]) -> tuple[int, int]:
        """[rows, columns] of the weight whose codes have this shape."""
        per_word = WORD_BITS // self.bits
        if self.scheme == "gptq":
            return codes[1], codes[0] * per_word
        if self.scheme == "packed":
            return codes[0], codes[1] * per_word
        return (codes[0], codes[1] * MX_BLOCK) if self.scheme == "mxfp4" else (codes[0], codes[1])


def part_name(part: str, component: Component) -> str:
    """Of an expert's part in its layout: `gate_codes`."""
    return f"{part}_{component}"


def bytes_as(dtype: str, shape: tuple[int, int]) -> int:
    return shape[0] * shape[1] * DTYPE_BITS[dtype] // 8


def _form(dtype: str, shape: tuple[int, ...]) -> Form:
    return Form(shapes=(shape,), dtypes=frozenset({dtype}))


def _grid(shape: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    rows, columns = (-(-size // side) if side else 1 for size, side in zip(shape, block, strict=True))
    return rows, columns
