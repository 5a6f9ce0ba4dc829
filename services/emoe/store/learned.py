"""Named arrays in one file, as safetensors has them: what was trained, read where torch is not.

The predictor and the loader begin from these bytes; `emoe profile` writes them. Strict both ways: dtypes are few, a
torn or padded file is an error. Does not know what the arrays mean.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from emoe.core.errors import CheckpointError
from emoe.store.headers import LENGTH_BYTES, header_end, read_header
from emoe.store.strict_json import parse_object

Array = npt.NDArray[Any]

NUMPY_DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "F32": np.dtype("<f4"),
    "I32": np.dtype("<i4"),
    "F16": np.dtype("<f2"),
    "U8": np.dtype("u1"),
}
"""In the order in which they are laid down, so that each array begins where its dtype wants it."""

_METADATA = "__metadata__"
_ALIGNMENT = 8


def read_arrays(raw: bytes, *, name: str = "the file of learned arrays") -> dict[str, Array]:
    """Every array, by its name, writable. CheckpointError says what is wrong with `name`."""
    entries = read_header(Path(name), num_bytes=len(raw), read_at=lambda size, offset: raw[offset : offset + size])
    arrays: dict[str, Array] = {}
    for key, entry in entries.items():
        dtype = NUMPY_DTYPES.get(entry.dtype)
        if dtype is None:
            raise CheckpointError(f"{name}: {key} is of dtype {entry.dtype}, which none of ours are; make it anew")
        stored = raw[entry.offset : entry.offset + entry.num_bytes]
        arrays[key] = np.frombuffer(stored, dtype=dtype).reshape(entry.shape).copy()
    return arrays


def read_metadata(raw: bytes) -> dict[str, str]:
    """Of a file that `read_arrays` found sound."""
    found = parse_object(raw[LENGTH_BYTES : header_end(raw[:LENGTH_BYTES])]).get(_METADATA, {})
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def write_arrays(arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> bytes:
    """The file's bytes; the same arrays give the same bytes. ValueError for a dtype that it does not take."""
    codes = {dtype: code for code, dtype in NUMPY_DTYPES.items()}
    order = list(NUMPY_DTYPES)
    coded: list[tuple[int, str, str, Array]] = []
    for key, array in arrays.items():
        code = codes.get(array.dtype.newbyteorder("<"))
        if code is None or key == _METADATA:
            raise ValueError(
                f"{key!r} of dtype {array.dtype} cannot be written; of {', '.join(map(str, codes))} it can"
            )
        coded.append((order.index(code), key, code, array))
    header: dict[str, object] = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    parts, position = [], 0
    for _, key, code, array in sorted(coded, key=lambda item: item[:2]):
        stored = array.astype(NUMPY_DTYPES[code], copy=False).tobytes()
        header[key] = {"dtype": code, "shape": list(array.shape), "data_offsets": [position, position + len(stored)]}
        parts.append(stored)
        position += len(stored)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return b"".join([struct.pack("<Q", len(text)), text, *parts])
