"""The header of one safetensors file, checked before anything trusts it.

A file is eight bytes of header length (little endian), that many bytes of JSON, then the tensors end to end. Read once
when a checkpoint is indexed; no tensor byte is touched. Does not know which tensors a model has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from emoe.core.errors import CheckpointError
from emoe.store.strict_json import is_count, parse_object
from emoe.store.tensors import DTYPE_BITS, TensorEntry

MAX_HEADER_BYTES = 100_000_000
"""The format's own bound."""

LENGTH_BYTES = 8
_GIT_LFS = b"version https://git-lfs"

ReadAt = Callable[[int, int], bytes]
"""(number of bytes, offset) -> bytes, fewer at the end of the file."""


def read_header(path: Path, *, num_bytes: int, read_at: ReadAt) -> dict[str, TensorEntry]:
    """Every tensor of the file, by key. CheckpointError names the file, and the key where one is to blame."""
    data_start = LENGTH_BYTES + _header_length(path, num_bytes, read_at(LENGTH_BYTES + len(_GIT_LFS), 0))
    raw = read_at(data_start - LENGTH_BYTES, LENGTH_BYTES)
    try:
        header = parse_object(raw)
    except ValueError as error:
        raise CheckpointError(f"{path}: the header is corrupt ({error}); fetch the file again") from error
    header.pop("__metadata__", None)
    entries = {key: _parse_entry(path, key, fields, data_start) for key, fields in header.items()}
    _check_end_to_end(path, entries, data_start, num_bytes)
    return entries


def header_end(start: bytes) -> int:
    """From the first LENGTH_BYTES of a file that was found sound."""
    return LENGTH_BYTES + int.from_bytes(start, "little")


def _header_length(path: Path, num_bytes: int, start: bytes) -> int:
    if start.startswith(_GIT_LFS):
        raise CheckpointError(f"{path}: this is a Git LFS pointer, not the file; run `git lfs pull` in its folder")
    if num_bytes <= LENGTH_BYTES:
        raise CheckpointError(f"{path}: truncated, only {num_bytes} bytes; fetch the file again")
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if start[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{" or not 2 <= length <= MAX_HEADER_BYTES:
        raise CheckpointError(f"{path}: not a safetensors file, or its start is corrupt; fetch the file again")
    if LENGTH_BYTES + length > num_bytes:
        raise CheckpointError(
            f"{path}: truncated inside the header ({num_bytes} bytes, the header alone takes "
            f"{LENGTH_BYTES + length}); fetch the file again"
        )
    return length


def _parse_entry(path: Path, key: str, fields: object, data_start: int) -> TensorEntry:
    if not isinstance(fields, dict):
        raise _corrupt(path, key, "its entry is not an object")
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _corrupt(path, key, f"dtype {dtype!r} is unknown")
    if not isinstance(shape, list) or not all(map(is_count, shape)):
        raise _corrupt(path, key, f"shape {shape!r} is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_count, offsets)):
        raise _corrupt(path, key, f"data_offsets {offsets!r} are not two positions")
    begin, end = offsets
    if (end - begin) * 8 != math.prod(shape) * DTYPE_BITS[dtype]:
        raise _corrupt(path, key, f"{end - begin} bytes do not make a {dtype} of shape {shape}")
    return TensorEntry(
        file=path.name, offset=data_start + begin, num_bytes=end - begin, shape=tuple(shape), dtype=dtype
    )


def _check_end_to_end(path: Path, entries: dict[str, TensorEntry], data_start: int, num_bytes: int) -> None:
    """The format leaves neither holes nor overlaps, and ends with the last tensor."""
    position = data_start
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].num_bytes)):
        if entry.offset != position:
            fault = "overlaps the tensor before it" if entry.offset < position else "leaves a hole before it"
            raise _corrupt(path, key, f"offset {entry.offset} {fault}")
        position += entry.num_bytes
        if position > num_bytes:
            raise CheckpointError(
                f"{path}: truncated: {key} ends at byte {position}, the file at {num_bytes}; fetch the file again"
            )
    if position != num_bytes:
        raise CheckpointError(
            f"{path}: {num_bytes - position} bytes follow the last tensor; the file is corrupt, fetch it again"
        )


def _corrupt(path: Path, key: str, fault: str) -> CheckpointError:
    return CheckpointError(f"{path}: the header is corrupt at {key}: {fault}; fetch the file again")
