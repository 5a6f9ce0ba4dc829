"""How one expert's bytes are laid out: its tensors in a fixed order, end to end, as the checkpoint stores them.

The worker sizes its slots and makes its views from this; the loader sends bytes in this order. The same for every
expert of a model. Does not know files.

Shapes are the checkpoint's own without the expert axis: gate and up [F, D], gate_up [2F, D], down [D, F]; gpt-oss
stores the transposes, [D, 2F] and [F, D], with gate and up interleaved.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Self

from emoe.store.tensors import DTYPE_BITS

PART_ORDER = ("gate", "up", "gate_up", "gate_up_bias", "down", "down_bias")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertPart:
    """One tensor of an expert. `dtype` is the format's name: F32, BF16 or F16; `offset` counts inside the expert."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    num_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertLayout:
    parts: tuple[ExpertPart, ...]
    num_bytes: int

    @classmethod
    def build(cls, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Self:
        """Parts by name -> the layout, in PART_ORDER."""
        parts: list[ExpertPart] = []
        offset = 0
        for name in PART_ORDER:
            if name in shapes:
                num_bytes = math.prod(shapes[name]) * DTYPE_BITS[dtype] // 8
                parts.append(ExpertPart(name=name, shape=shapes[name], dtype=dtype, offset=offset, num_bytes=num_bytes))
                offset += num_bytes
        return cls(parts=tuple(parts), num_bytes=offset)
