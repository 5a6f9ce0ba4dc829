"""What a prompt's inputs are called in the Open Inference Protocol, and how each is read.

An option may come as a tensor, in the JSON object `sampling_parameters`, or as a request parameter, the first of these
going before the others: so Triton's vLLM backend takes them, numbers as text included. Values are brought into form
here; whether they make sense is for the request's own parsing to say.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping
from reprlib import repr as brief
from typing import Any

from emoe.core.errors import InvalidRequestError
from emoe.oip.open_inference_pb2 import ModelInferRequest
from emoe.scheduler.inference_tensors import BYTES, Tensor, parse_tensors

PROMPT = "text_input"
SAMPLING_PARAMETERS = "sampling_parameters"
TIMEOUT = "timeout"
"""A request parameter that Triton's clients send: microseconds for the whole answer."""
_IGNORED_PREFIX = "triton_"
"""What Triton's clients say about the transport, such as triton_enable_empty_final_response."""
_INTEGER_LIMITS = {"INT32": 2**31, "INT64": 2**63}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """`datatype` and `shape` as metadata tells them; a wider or narrower number of the same kind will do."""

    datatype: str
    shape: tuple[int, ...] = (1,)
    read: Callable[[str, Any], Any]
    """What it is, for a message, and the value as it came: the value in form, or InvalidRequestError."""


def read_inputs(message: ModelInferRequest) -> dict[str, Any]:
    """The inputs that were given, PROMPT and options alike, by name. InvalidRequestError names the one at fault."""
    tensors = parse_tensors(message)
    values = {name: _read_parameter(name, message) for name in message.parameters if not _is_ignored(name)}
    if packed := tensors.pop(SAMPLING_PARAMETERS, None):
        values |= _read_json(_read_tensor(packed, _TEXT_INPUT))
    values |= {name: _read_tensor(tensor, _input_named(name, INPUTS, "tensor")) for name, tensor in tensors.items()}
    if PROMPT not in values:
        raise InvalidRequestError(f"tensor {PROMPT!r} is missing; it is the prompt, BYTES of shape [1]")
    return values


def _is_ignored(name: str) -> bool:
    return name == TIMEOUT or name.startswith(_IGNORED_PREFIX)


def _input_named(name: str, known: Mapping[str, Input], what: str) -> Input:
    if name not in known:
        raise InvalidRequestError(f"{what} {brief(name)} is not known; there are {', '.join(known)}")
    return known[name]


def _read_parameter(name: str, message: ModelInferRequest) -> Any:
    parameter = message.parameters[name]
    chosen = parameter.WhichOneof("parameter_choice")
    if chosen is None:
        raise InvalidRequestError(f"parameter {brief(name)} has no value")
    return _input_named(name, OPTIONS, "parameter").read(f"parameter {brief(name)}", getattr(parameter, chosen))


def _read_json(text: str) -> dict[str, Any]:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"tensor {SAMPLING_PARAMETERS!r} is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise InvalidRequestError(f"tensor {SAMPLING_PARAMETERS!r} must hold one JSON object")
    return {
        name: _input_named(name, OPTIONS, SAMPLING_PARAMETERS).read(f"{SAMPLING_PARAMETERS} {brief(name)}", value)
        for name, value in given.items()
        if value is not None
    }


def _read_tensor(tensor: Tensor, expected: Input) -> Any:
    if _family(tensor.datatype) != _family(expected.datatype):
        raise InvalidRequestError(f"tensor {brief(tensor.name)} must be {expected.datatype}, not {tensor.datatype}")
    if expected.shape == (-1,):
        if len(tensor.shape) != 1:
            raise InvalidRequestError(
                f"tensor {brief(tensor.name)} must have one dimension, not shape {brief(list(tensor.shape))}"
            )
        return expected.read(f"tensor {brief(tensor.name)}", list(tensor.values))
    if tensor.shape != expected.shape:
        raise InvalidRequestError(
            f"tensor {brief(tensor.name)} must have shape [1], not {brief(list(tensor.shape))}: one prompt a request"
        )
    return expected.read(f"tensor {brief(tensor.name)}", tensor.values[0])


def _family(datatype: str) -> str:
    return "INT" if "INT" in datatype else datatype[:2]


def _integer(limit: int) -> Callable[[str, Any], int]:
    def read(what: str, value: Any) -> int:
        number = value
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                number = int(value)
        if isinstance(number, bool) or not isinstance(number, int):
            raise InvalidRequestError(f"{what} must be an integer, not {brief(value)}")
        if not -limit <= number < limit:
            raise InvalidRequestError(f"{what} is beyond {limit - 1}, the largest number that it can be")
        return number

    return read


def _number(what: str, value: Any) -> float:
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            return float(value)
    raise InvalidRequestError(f"{what} must be a number, not {brief(value)}")


def _flag(what: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequestError(f"{what} must be true or false, not {brief(value)}")
    return value


def _text(what: str, value: Any) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequestError(f"{what} is not UTF-8: {error.reason} at byte {error.start}") from error
    if not isinstance(value, str):
        raise InvalidRequestError(f"{what} must be text, not {brief(value)}")
    return value


def _texts(what: str, value: Any) -> list[str]:
    return [_text(what, element) for element in value] if isinstance(value, list) else [_text(what, value)]


def _exclusion(what: str, value: Any) -> bool:
    if not _flag(what, value):
        raise InvalidRequestError(f"{what} must be true: an answer never repeats its prompt here")
    return True


_TEXT_INPUT = Input(datatype=BYTES, read=_text)
OPTIONS: Mapping[str, Input] = {
    **{name: Input(datatype="INT32", read=_integer(_INTEGER_LIMITS["INT32"])) for name in ("max_tokens", "top_k")},
    **{name: Input(datatype="FP32", read=_number) for name in ("temperature", "top_p")},
    "seed": Input(datatype="INT64", read=_integer(_INTEGER_LIMITS["INT64"])),
    "stop": Input(datatype=BYTES, shape=(-1,), read=_texts),
    **dict.fromkeys(("task", "tenant"), _TEXT_INPUT),
    "raw": Input(datatype="BOOL", read=_flag),
    "stream": Input(datatype="BOOL", read=_flag),
    "exclude_input_in_output": Input(datatype="BOOL", read=_exclusion),
}
INPUTS: Mapping[str, Input] = {PROMPT: _TEXT_INPUT, SAMPLING_PARAMETERS: _TEXT_INPUT, **OPTIONS}
