"""One inference of the Open Inference Protocol as a Generate request, and its answer's pieces as its responses."""

from __future__ import annotations

import dataclasses
from reprlib import repr as brief
from typing import Any

from emoe.core.errors import InvalidRequestError
from emoe.oip import open_inference_pb2 as oip
from emoe.runtime.messages import parse_piece
from emoe.scheduler.inference_inputs import INPUTS, PROMPT, TIMEOUT, read_inputs
from emoe.scheduler.inference_tensors import BYTES, encode_bytes
from emoe.v1 import generation_pb2

ANSWER = "text_output"
FINAL = "triton_final_response"
MODEL_VERSION = "1"
PLATFORM = "emoe"
_SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inference:
    """`payload` is a serialized GenerateRequest. `stream`: the answer in pieces; None: the client did not say."""

    model_name: str
    request_id: str
    payload: bytes
    stream: bool | None
    timeout_seconds: float | None
    raw: bool
    """The request came in raw contents, so the answer goes out in them."""


def parse_inference(message: oip.ModelInferRequest, *, max_bytes: int) -> Inference:
    """InvalidRequestError names the tensor or parameter at fault. The model's name is for the caller to check."""
    if message.ByteSize() > max_bytes:
        raise InvalidRequestError(
            f"the request has {message.ByteSize()} bytes; this scheduler takes at most {max_bytes}"
        )
    inputs = read_inputs(message)
    for output in message.outputs:
        if output.name != ANSWER:
            raise InvalidRequestError(f"output tensor {brief(output.name)} is not known; there is {ANSWER!r}")
    request = generation_pb2.GenerateRequest(
        text=inputs[PROMPT],
        raw=inputs.get("raw", False),
        task=inputs.get("task", ""),
        tenant=inputs.get("tenant", ""),
        sampling=generation_pb2.Sampling(**{name: inputs[name] for name in _SAMPLING if name in inputs}),
        request_id=message.id,
    )
    return Inference(
        model_name=message.model_name,
        request_id=message.id,
        payload=request.SerializeToString(),
        stream=inputs.get("stream"),
        timeout_seconds=_parse_timeout(message),
        raw=bool(message.raw_input_contents),
    )


def describe_model(name: str) -> oip.ModelMetadataResponse:
    tensor = oip.ModelMetadataResponse.TensorMetadata
    return oip.ModelMetadataResponse(
        name=name,
        versions=[MODEL_VERSION],
        platform=PLATFORM,
        inputs=[tensor(name=key, datatype=one.datatype, shape=one.shape) for key, one in INPUTS.items()],
        outputs=[tensor(name=ANSWER, datatype=BYTES, shape=[1])],
    )


class AnswerParts:
    """Collects an answer's pieces into inference responses: `take` what came, `give` what has become worth sending."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._texts: list[str] = []
        self._pending = generation_pb2.GenerateResponse()

    def take(self, data: bytes) -> None:
        """A serialized GenerateResponse."""
        piece = generation_pb2.GenerateResponse.FromString(data)
        self._texts.append(piece.text)
        self._pending.MergeFrom(piece)

    @property
    def finished(self) -> bool:
        return bool(self._pending.finish_reason)

    @property
    def worth_sending(self) -> bool:
        """Text may lag behind the tokens: a piece without any waits for the next."""
        return self.finished or any(self._texts)

    def give(self) -> oip.ModelInferResponse:
        """What was taken since the last time."""
        response = oip.ModelInferResponse(
            model_name=self._inference.model_name, model_version=MODEL_VERSION, id=self._inference.request_id
        )
        _set_parameters(response, self._pending)
        output = response.outputs.add(name=ANSWER, datatype=BYTES, shape=[1])
        text = "".join(self._texts).encode()
        if self._inference.raw:
            response.raw_output_contents.append(encode_bytes(text))
        else:
            output.contents.bytes_contents.append(text)
        self._texts, self._pending = [], generation_pb2.GenerateResponse()
        return response


def _set_parameters(response: oip.ModelInferResponse, pieces: generation_pb2.GenerateResponse) -> None:
    last = parse_piece(pieces)
    texts: dict[str, Any] = {"task": pieces.task, "worker_id": pieces.worker_id}
    if last.finish_reason is not None:
        texts["finish_reason"] = last.finish_reason.value
    for name, text in texts.items():
        if text:
            response.parameters[name].string_param = text
    if pieces.worker_id:
        response.parameters["queue_seconds"].double_param = pieces.queue_seconds
    if last.usage is not None:
        for name, count in dataclasses.asdict(last.usage).items():
            response.parameters[name].int64_param = count


def _parse_timeout(message: oip.ModelInferRequest) -> float | None:
    if TIMEOUT not in message.parameters:
        return None
    microseconds = message.parameters[TIMEOUT].int64_param
    if microseconds <= 0:
        raise InvalidRequestError(f"parameter {TIMEOUT!r} must be a positive int64, in microseconds")
    return microseconds / 1e6
