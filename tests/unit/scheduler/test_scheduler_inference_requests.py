"""Inferences of the Open Inference Protocol: what each input becomes, and which ones are refused, by name."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emoe.core.errors import InvalidRequestError
from emoe.oip.open_inference_pb2 import InferParameter, InferTensorContents, ModelInferRequest
from emoe.scheduler.inference_messages import AnswerParts, describe_model, parse_inference
from emoe.scheduler.inference_tensors import encode_bytes, parse_tensors
from emoe.v1 import generation_pb2

Tensor = ModelInferRequest.InferInputTensor
MAX_BYTES = 10_000


def typed(name: str, datatype: str, field: str, *values: Any, shape: tuple[int, ...] | None = None) -> Tensor:
    contents = InferTensorContents(**{field: values})
    return Tensor(name=name, datatype=datatype, shape=[len(values)] if shape is None else shape, contents=contents)


def text(name: str, *values: bytes, shape: tuple[int, ...] | None = None) -> Tensor:
    return typed(name, "BYTES", "bytes_contents", *values, shape=shape)


PROMPT = text("text_input", b"Hello")


def parse(*tensors: Tensor, prompt: Tensor = PROMPT, **fields: Any) -> generation_pb2.GenerateRequest:
    message = ModelInferRequest(inputs=[prompt, *tensors], **fields)
    return generation_pb2.GenerateRequest.FromString(parse_inference(message, max_bytes=MAX_BYTES).payload)


def test_options_come_as_tensors() -> None:
    request = parse(
        typed("max_tokens", "INT32", "int_contents", 9),
        typed("temperature", "FP32", "fp32_contents", 0.5),
        typed("top_p", "FP64", "fp64_contents", 0.9),
        typed("top_k", "UINT8", "uint_contents", 7),
        typed("seed", "INT64", "int64_contents", -3),
        text("stop", b"A", "ß".encode()),
        text("task", b"code"),
        text("tenant", b"blue"),
        typed("raw", "BOOL", "bool_contents", True),
        id="mine",
    )
    sampling = request.sampling
    assert (request.text, request.task, request.tenant) == ("Hello", "code", "blue")
    assert (request.raw, request.request_id) == (True, "mine")
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (9, 0.5, 0.9)
    assert (sampling.top_k, sampling.seed, list(sampling.stop)) == (7, -3, ["A", "ß"])


def test_options_come_as_json_with_numbers_as_text_too() -> None:
    given = {"max_tokens": "9", "temperature": "0.5", "top_p": 0.9, "stop": ["A", "B"], "seed": None}
    request = parse(text("sampling_parameters", json.dumps(given).encode()))
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (9, 0.5, 0.9)
    assert list(sampling.stop) == ["A", "B"]
    assert not sampling.HasField("seed")


def test_options_come_as_request_parameters() -> None:
    parameters = {
        "max_tokens": InferParameter(int64_param=9),
        "top_k": InferParameter(uint64_param=7),
        "temperature": InferParameter(double_param=0.5),
        "stop": InferParameter(string_param="A"),
        "raw": InferParameter(bool_param=True),
    }
    request = parse(parameters=parameters)
    assert (request.sampling.max_tokens, request.sampling.top_k, request.sampling.temperature) == (9, 7, 0.5)
    assert (list(request.sampling.stop), request.raw) == (["A"], True)


def test_a_tensor_goes_before_json_and_json_before_a_parameter() -> None:
    names = ("max_tokens", "top_k", "seed")
    request = parse(
        typed("max_tokens", "INT32", "int_contents", 1),
        text("sampling_parameters", b'{"max_tokens": 2, "top_k": 2}'),
        parameters={name: InferParameter(int64_param=3) for name in names},
    )
    assert [getattr(request.sampling, name) for name in names] == [1, 2, 3]


def test_options_that_are_left_out_stay_unset() -> None:
    assert parse() == generation_pb2.GenerateRequest(text="Hello", sampling=generation_pb2.Sampling())


def test_what_clients_say_about_the_transport_is_passed_over() -> None:
    parameters = {"triton_enable_empty_final_response": InferParameter(bool_param=True)}
    assert parse(typed("exclude_input_in_output", "BOOL", "bool_contents", True), parameters=parameters).text == "Hello"


def test_timeout_is_in_microseconds() -> None:
    message = ModelInferRequest(inputs=[PROMPT], parameters={"timeout": InferParameter(int64_param=1_500_000)})
    assert parse_inference(message, max_bytes=MAX_BYTES).timeout_seconds == 1.5


NUMBERS = {
    **{"BOOL": ("?", "bool_contents", st.booleans()), "INT8": ("b", "int_contents", st.integers(-128, 127))},
    **{"INT64": ("q", "int64_contents", st.integers(-(2**63), 2**63 - 1))},
    **{"UINT32": ("I", "uint_contents", st.integers(0, 2**32 - 1))},
    **{"UINT64": ("Q", "uint64_contents", st.integers(0, 2**64 - 1))},
    **{"FP32": ("f", "fp32_contents", st.floats(width=32, allow_nan=False))},
    **{"FP64": ("d", "fp64_contents", st.floats(allow_nan=False))},
}


@given(data=st.data(), datatype=st.sampled_from(sorted(NUMBERS)))
def test_raw_and_typed_contents_are_read_alike(data: st.DataObject, datatype: str) -> None:
    code, field, elements = NUMBERS[datatype]
    values = data.draw(st.lists(elements, max_size=4))
    raw = Tensor(name="x", datatype=datatype, shape=[len(values)])
    packed = struct.pack(f"<{len(values)}{code}", *values)
    from_raw = parse_tensors(ModelInferRequest(inputs=[raw], raw_input_contents=[packed]))
    assert from_raw == parse_tensors(ModelInferRequest(inputs=[typed("x", datatype, field, *values)]))


@given(values=st.lists(st.binary(max_size=20), max_size=4))
def test_raw_bytes_are_split_as_they_were_joined(values: list[bytes]) -> None:
    tensor = Tensor(name="x", datatype="BYTES", shape=[len(values)])
    raw = b"".join(encode_bytes(value) for value in values)
    parsed = parse_tensors(ModelInferRequest(inputs=[tensor], raw_input_contents=[raw]))
    assert parsed["x"].values == tuple(values)


@given(raw=st.binary(max_size=40), size=st.integers(-1, 3))
def test_arbitrary_raw_bytes_are_read_or_refused(raw: bytes, size: int) -> None:
    message = ModelInferRequest(
        inputs=[Tensor(name="text_input", datatype="BYTES", shape=[size])], raw_input_contents=[raw]
    )
    try:
        payload = parse_inference(message, max_bytes=MAX_BYTES).payload
    except InvalidRequestError as error:
        reason = str(error)
    else:
        reason = "text_input"
        assert encode_bytes(generation_pb2.GenerateRequest.FromString(payload).text.encode()) == raw
    assert "text_input" in reason


def parameter(**choice: Any) -> dict[str, InferParameter]:
    return {"max_tokens": InferParameter(**choice)}


RAW_PROMPT = Tensor(name="text_input", datatype="BYTES", shape=[1])
REFUSED = {
    "no prompt": (ModelInferRequest(), "'text_input' is missing"),
    "prompt of two": (ModelInferRequest(inputs=[text("text_input", b"a", b"b")]), "'text_input' must have shape [1]"),
    "prompt as a scalar": (
        ModelInferRequest(inputs=[text("text_input", b"a", shape=())]),
        "'text_input' must have shape",
    ),
    "prompt of numbers": (
        ModelInferRequest(inputs=[typed("text_input", "INT32", "int_contents", 1)]),
        "'text_input' must be BYTES",
    ),
    "prompt that is no text": (ModelInferRequest(inputs=[text("text_input", b"\xff")]), "'text_input' is not UTF-8"),
    "empty contents": (ModelInferRequest(inputs=[RAW_PROMPT]), "needs 1 elements, its contents have 0"),
    "shape too large": (
        ModelInferRequest(inputs=[text("text_input", b"a", shape=(2**40, 2**40))]),
        "its contents have 1",
    ),
    "negative shape": (
        ModelInferRequest(inputs=[text("text_input", b"a", shape=(-1,))]),
        "'text_input' has shape [-1]",
    ),
    "shape of too many": (ModelInferRequest(inputs=[text("text_input", b"a", shape=(1,) * 9)]), "at most 8 sizes"),
    "unknown datatype": (
        ModelInferRequest(inputs=[Tensor(name="text_input", datatype="STRING", shape=[1])]),
        "'text_input' has datatype 'STRING'",
    ),
    "wrong contents": (
        ModelInferRequest(inputs=[typed("text_input", "BYTES", "int_contents", 1)]),
        "'text_input' of BYTES goes into bytes_contents",
    ),
    "given twice": (ModelInferRequest(inputs=[PROMPT, PROMPT]), "'text_input' is given twice"),
    "unknown tensor": (ModelInferRequest(inputs=[PROMPT, text("image", b"x")]), "tensor 'image' is not known"),
    "unknown parameter": (
        ModelInferRequest(inputs=[PROMPT], parameters={"priority": InferParameter(uint64_param=1)}),
        "parameter 'priority' is not known",
    ),
    "parameter without a value": (ModelInferRequest(inputs=[PROMPT], parameters=parameter()), "no value"),
    "prompt as a parameter": (
        ModelInferRequest(parameters={"text_input": InferParameter(string_param="x")}),
        "parameter 'text_input' is not known",
    ),
    "word for a number": (
        ModelInferRequest(inputs=[PROMPT], parameters=parameter(string_param="many")),
        "parameter 'max_tokens' must be an integer, not 'many'",
    ),
    "fraction for an integer": (
        ModelInferRequest(inputs=[PROMPT], parameters=parameter(double_param=1.5)),
        "parameter 'max_tokens' must be an integer",
    ),
    "truth for an integer": (
        ModelInferRequest(inputs=[PROMPT], parameters=parameter(bool_param=True)),
        "parameter 'max_tokens' must be an integer",
    ),
    "integer too large": (
        ModelInferRequest(inputs=[PROMPT], parameters=parameter(int64_param=2**31)),
        "parameter 'max_tokens' is beyond 2147483647",
    ),
    "unknown output": (
        ModelInferRequest(inputs=[PROMPT], outputs=[ModelInferRequest.InferRequestedOutputTensor(name="logits")]),
        "output tensor 'logits'",
    ),
    "prompt repeated": (
        ModelInferRequest(inputs=[PROMPT, typed("exclude_input_in_output", "BOOL", "bool_contents", False)]),
        "'exclude_input_in_output' must be true",
    ),
    "JSON that is none": (
        ModelInferRequest(inputs=[PROMPT, text("sampling_parameters", b"{")]),
        "'sampling_parameters' is not JSON",
    ),
    "JSON too deep": (
        ModelInferRequest(inputs=[PROMPT, text("sampling_parameters", b"[" * 5_000)]),
        "'sampling_parameters' is not JSON",
    ),
    "JSON that is a list": (ModelInferRequest(inputs=[PROMPT, text("sampling_parameters", b"[]")]), "one JSON object"),
    "JSON with an unknown name": (
        ModelInferRequest(inputs=[PROMPT, text("sampling_parameters", b'{"best_of": 2}')]),
        "sampling_parameters 'best_of' is not known",
    ),
    "JSON with a number too large": (
        ModelInferRequest(inputs=[PROMPT, text("sampling_parameters", b'{"top_p": 1' + b"0" * 400 + b"}")]),
        "sampling_parameters 'top_p' must be a number",
    ),
    "raw contents too few": (
        ModelInferRequest(inputs=[RAW_PROMPT, text("task", b"qa")], raw_input_contents=[encode_bytes(b"x")]),
        "raw_input_contents has 1 entries for 2 inputs",
    ),
    "raw and typed": (
        ModelInferRequest(inputs=[PROMPT], raw_input_contents=[encode_bytes(b"x")]),
        "'text_input' has contents beside raw_input_contents",
    ),
    "raw of a wrong size": (
        ModelInferRequest(
            inputs=[RAW_PROMPT, Tensor(name="seed", datatype="INT64", shape=[1])],
            raw_input_contents=[encode_bytes(b"x"), b"123"],
        ),
        "'seed' of INT64 takes 8 bytes an element",
    ),
    "shared memory": (
        ModelInferRequest(
            inputs=[
                Tensor(
                    name="text_input",
                    datatype="BYTES",
                    shape=[1],
                    parameters={"shared_memory_region": InferParameter(string_param="r")},
                )
            ]
        ),
        "'text_input' lies in shared memory",
    ),
    "timeout of nothing": (
        ModelInferRequest(inputs=[PROMPT], parameters={"timeout": InferParameter(int64_param=0)}),
        "'timeout' must be a positive",
    ),
    "too many bytes": (ModelInferRequest(inputs=[text("text_input", b"x" * MAX_BYTES)]), "at most 10000"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_request_that_does_not_hold_together_is_refused_by_name(name: str) -> None:
    message, reason = REFUSED[name]
    with pytest.raises(InvalidRequestError) as refused:
        parse_inference(message, max_bytes=MAX_BYTES)
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 300


def test_metadata_names_every_input_that_is_read() -> None:
    metadata = describe_model("m")
    assert {(one.name, one.datatype, tuple(one.shape)) for one in metadata.inputs} == {
        *((name, "BYTES", (1,)) for name in ("text_input", "sampling_parameters", "task", "tenant")),
        *((name, "INT32", (1,)) for name in ("max_tokens", "top_k")),
        *((name, "FP32", (1,)) for name in ("temperature", "top_p")),
        *((name, "BOOL", (1,)) for name in ("raw", "stream", "exclude_input_in_output")),
        *(("seed", "INT64", (1,)), ("stop", "BYTES", (-1,))),
    }


def test_pieces_without_text_wait_for_the_next_and_lose_nothing() -> None:
    parts = AnswerParts(parse_inference(ModelInferRequest(inputs=[PROMPT], id="mine"), max_bytes=MAX_BYTES))
    parts.take(generation_pb2.GenerateResponse(token_ids=[1], task="qa", worker_id="w").SerializeToString())
    assert not parts.worth_sending
    parts.take(generation_pb2.GenerateResponse(text="Good ", token_ids=[2]).SerializeToString())
    parts.take(generation_pb2.GenerateResponse(text="day").SerializeToString())
    assert parts.worth_sending
    response = parts.give()
    assert [list(output.contents.bytes_contents) for output in response.outputs] == [[b"Good day"]]
    assert (response.id, response.parameters["task"].string_param) == ("mine", "qa")
    assert "finish_reason" not in response.parameters
    assert not parts.worth_sending
