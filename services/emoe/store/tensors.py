"""A tensor as a safetensors file stores it: where its bytes lie, how many, and what they mean.

The vocabulary of the store's other modules; nothing here opens a file or knows what an expert is.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

DTYPE_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
}
"""Every dtype of the format, with the bits of one element."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """`file` is a name inside the checkpoint folder; `offset` counts from the start of that file."""

    file: str
    offset: int
    num_bytes: int
    shape: tuple[int, ...]
    dtype: str


class Extent(NamedTuple):
    """A run of bytes of one file. `key` is the tensor it belongs to, for messages."""

    key: str
    file: str
    offset: int
    num_bytes: int


class FileStat(NamedTuple):
    """What tells a file that changed from one that did not, without reading it."""

    name: str
    num_bytes: int
    mtime_ns: int
