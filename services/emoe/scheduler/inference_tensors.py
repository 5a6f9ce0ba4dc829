"""The Open Inference Protocol's input tensors as plain values, from typed contents or from raw bytes.

Checks what a tensor says of itself: datatype, shape and contents must agree. Knows nothing of prompts.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from reprlib import repr as brief
from typing import Any

from emoe.core.errors import InvalidRequestError
from emoe.oip.open_inference_pb2 import ModelInferRequest

BYTES = "BYTES"
MAX_DIMENSIONS = 8
BYTES_LENGTH = struct.Struct("<I")
_RAW_FORMATS = {
    **{"BOOL": "?", "FP32": "f", "FP64": "d"},
    **{"INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q"},
    **{"UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q"},
}
_CONTENTS_FIELDS = {
    **{"BOOL": "bool_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", BYTES: "bytes_contents"},
    **{"INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents"},
    **{"UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents"},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """`values` in row-major order: bool, int, float or bytes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: tuple[Any, ...]


def parse_tensors(message: ModelInferRequest) -> dict[str, Tensor]:
    """By name. InvalidRequestError names the tensor that does not hold together."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidRequestError(
            f"raw_input_contents has {len(raw)} entries for {len(message.inputs)} inputs; give one for each, in order"
        )
    tensors: dict[str, Tensor] = {}
    for index, entry in enumerate(message.inputs):
        if entry.name in tensors:
            raise InvalidRequestError(f"tensor {brief(entry.name)} is given twice")
        tensors[entry.name] = _parse_tensor(entry, raw[index] if raw else None)
    return tensors


def encode_bytes(element: bytes) -> bytes:
    """One element of a BYTES tensor in raw contents."""
    return BYTES_LENGTH.pack(len(element)) + element


def _parse_tensor(entry: ModelInferRequest.InferInputTensor, raw: bytes | None) -> Tensor:
    if entry.datatype not in _CONTENTS_FIELDS:
        raise InvalidRequestError(
            f"tensor {brief(entry.name)} has datatype {brief(entry.datatype)};"
            f" known are {', '.join(sorted(_CONTENTS_FIELDS))}"
        )
    if "shared_memory_region" in entry.parameters:
        raise InvalidRequestError(
            f"tensor {brief(entry.name)} lies in shared memory, which emoe does not read; send it"
        )
    if len(entry.shape) > MAX_DIMENSIONS or any(size < 0 for size in entry.shape):
        raise InvalidRequestError(
            f"tensor {brief(entry.name)} has shape {brief(list(entry.shape))};"
            f" a shape is at most {MAX_DIMENSIONS} sizes of 0 or more"
        )
    values = _read_contents(entry) if raw is None else _read_raw(entry, raw)
    num_elements = math.prod(entry.shape)
    if len(values) != num_elements:
        raise InvalidRequestError(
            f"tensor {brief(entry.name)} of shape {brief(list(entry.shape))} needs {brief(num_elements)} elements,"
            f" its contents have {len(values)}"
        )
    return Tensor(name=entry.name, datatype=entry.datatype, shape=tuple(entry.shape), values=values)


def _read_contents(entry: ModelInferRequest.InferInputTensor) -> tuple[Any, ...]:
    field = _CONTENTS_FIELDS[entry.datatype]
    foreign = [given.name for given, _ in entry.contents.ListFields() if given.name != field]
    if foreign:
        raise InvalidRequestError(f"tensor {brief(entry.name)} of {entry.datatype} goes into {field}, not {foreign[0]}")
    return tuple(getattr(entry.contents, field))


def _read_raw(entry: ModelInferRequest.InferInputTensor, raw: bytes) -> tuple[Any, ...]:
    if entry.HasField("contents"):
        raise InvalidRequestError(
            f"tensor {brief(entry.name)} has contents beside raw_input_contents; give one of them"
        )
    if entry.datatype == BYTES:
        return tuple(_split_bytes(entry.name, raw))
    element = struct.Struct(f"<{_RAW_FORMATS[entry.datatype]}")
    if len(raw) % element.size:
        raise InvalidRequestError(
            f"tensor {brief(entry.name)} of {entry.datatype} takes {element.size} bytes an element;"
            f" its raw contents have {len(raw)}"
        )
    return tuple(value for (value,) in element.iter_unpack(raw))


def _split_bytes(name: str, raw: bytes) -> list[bytes]:
    elements, start = [], 0
    while start < len(raw):
        begin = start + BYTES_LENGTH.size
        end = begin + BYTES_LENGTH.unpack_from(raw, start)[0] if begin <= len(raw) else begin
        if end > len(raw):
            raise InvalidRequestError(
                f"tensor {brief(name)} of BYTES breaks off in its raw contents;"
                " each element needs its length before it, as four bytes, little endian"
            )
        elements.append(raw[begin:end])
        start = end
    return elements
