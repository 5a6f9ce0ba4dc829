"""How one expert's bytes are laid out: its tensors in a fixed order, end to end, as the checkpoint stores them.

The worker sizes its slots and makes its views from this; the loader sends bytes in this order. The same for every
expert of a model. Does not know files.

Shapes are the checkpoint's own without the expert axis: gate and up [F, D], gate_up [2F, D], down [D, F]; gpt-oss
stores the transposes, [D, 2F] and [F, D], with gate and up interleaved. Of a quantised weight there are codes, scales
and perhaps zeros, each a part of its own (`gate_codes`, `gate_scales`): wide elements first, so that all are aligned.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Self

from emoe.store.tensors import DTYPE_BITS

PART_ORDER = ("gate", "up", "gate_up", "gate_up_bias", "down", "down_bias")
_COMPONENTS = ("_codes", "_scales", "_zeros")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertPart:
    """One tensor of an expert. `dtype` is the format's name (BF16, U8 ...); `offset` counts inside the expert."""

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
    def build(cls, shapes: Mapping[str, tuple[int, ...]], dtypes: str | Mapping[str, str]) -> Self:
        """Parts by name -> the layout; `dtypes` is one name for all parts, or one a part."""
        named = {name: dtypes if isinstance(dtypes, str) else dtypes[name] for name in shapes}
        parts: list[ExpertPart] = []
        offset = 0
        for name in in_order(named):
            dtype = named[name]
            num_bytes = math.prod(shapes[name]) * DTYPE_BITS[dtype] // 8
            parts.append(ExpertPart(name=name, shape=shapes[name], dtype=dtype, offset=offset, num_bytes=num_bytes))
            offset += num_bytes
        return cls(parts=tuple(parts), num_bytes=offset)


def in_order(dtypes: Mapping[str, str]) -> Iterable[str]:
    """Names of parts as they lie: wide elements first, else as in PART_ORDER, components of one weight together."""
    return sorted(dtypes, key=lambda name: (-DTYPE_BITS[dtypes[name]], _place(name)))


def _place(name: str) -> tuple[int, int]:
    for number, component in enumerate(_COMPONENTS, 1):
        if name.endswith(component):
            return PART_ORDER.index(name.removesuffix(component)), number
    return PART_ORDER.index(name), 0
