"""tritonclient, as its users have it, against the front door: the protocol as others speak it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_models import save_small_model
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from scheduler_neighbours import Neighbourhood, ScriptedWorker
from support.triton import run_triton, triton_running
from support.up import running_up

from emoe.oip import open_inference_pb2
from emoe.runtime.channels import open_channel
from emoe.v1 import generation_pb2, scheduler_pb2_grpc

pytestmark = pytest.mark.timeout(400)
PROMPT = ["text_input", "BYTES", ["hello"]]


@pytest.fixture
async def neighbourhood() -> AsyncIterator[Neighbourhood]:
    async with contextlib.AsyncExitStack() as stack:
        yield Neighbourhood(stack)


async def address_of(neighbourhood: Neighbourhood, **settings: Any) -> str:
    door = await neighbourhood.start_scheduler(**settings)
    assert door.host is not None
    return door.host.address


async def test_it_sees_a_live_and_ready_server_with_its_model(neighbourhood) -> None:
    await neighbourhood.start_worker(ScriptedWorker())
    [seen] = await run_triton(await address_of(neighbourhood, model_name="tiny"), "tiny", "look")
    assert (seen["live"], seen["ready"], seen["model_ready"]) == (True, True, True)
    assert (seen["server"]["name"], seen["model"]["name"], seen["model"]["versions"]) == ("emoe", "tiny", ["1"])
    assert {"name": "text_input", "datatype": "BYTES", "shape": ["1"]} in seen["model"]["inputs"]
    assert seen["model"]["outputs"] == [{"name": "text_output", "datatype": "BYTES", "shape": ["1"]}]


async def test_infer_answers_with_options_in_each_of_their_forms(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker())
    address = await address_of(neighbourhood)
    tensors = [PROMPT, ["max_tokens", "INT32", [9]], ["temperature", "FP32", [0.5]], ["raw", "BOOL", [True]]]
    tensors += [["sampling_parameters", "BYTES", ['{"seed": "3", "top_p": "0.5"}']], ["stop", "BYTES", ["A", "B"]]]
    fields = {"parameters": {"top_k": 7, "task": "qa"}, "request_id": "mine"}

    [answer] = await run_triton(address, "emoe", "infer", tensors=tensors, **fields)

    assert (answer["texts"], answer["id"], answer["model"]) == (["0 1 2 "], "mine", "emoe")
    assert (answer["parameters"]["finish_reason"], answer["parameters"]["num_completion_tokens"]) == ("stop", 3)
    [request] = worker.requests
    sampling = request.sampling
    assert (request.text, request.task, request.raw) == ("hello", "qa", True)
    assert (sampling.max_tokens, sampling.temperature, sampling.seed) == (9, 0.5, 3)
    assert (sampling.top_p, sampling.top_k, list(sampling.stop)) == (0.5, 7, ["A", "B"])


async def test_it_reads_refusals_as_its_own_errors(neighbourhood) -> None:
    await neighbourhood.start_worker(ScriptedWorker())
    address = await address_of(neighbourhood)
    [unknown] = await run_triton(address, "gpt", "infer", tensors=[PROMPT])
    [numbers] = await run_triton(address, "emoe", "infer", tensors=[["text_input", "INT32", [1]]])
    [failed, end] = await run_triton(address, "emoe", "stream", requests=[{"tensors": [["task", "BYTES", ["qa"]]]}])
    assert (unknown["status"], "there is 'emoe'" in unknown["error"]) == ("StatusCode.NOT_FOUND", True)
    assert numbers["status"] == "StatusCode.INVALID_ARGUMENT"
    assert numbers["error"] == "tensor 'text_input' must be BYTES, not INT32"
    assert failed["error"].startswith("INVALID_ARGUMENT: tensor 'text_input' is missing")
    assert end == {"left": False}


async def test_it_hears_each_word_of_a_stream_before_the_next_is_made(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker(stepwise=True))
    options = {"requests": [{"tensors": [PROMPT, ["stream", "BOOL", [True]]], "request_id": "mine"}]}
    async with triton_running(await address_of(neighbourhood), "emoe", "stream", json.dumps(options)) as printed:
        for index in range(3):
            worker.step()
            part = await anext(printed)
            assert (part["texts"], part["id"]) == ([f"{index} "], "mine")
            assert part["parameters"]["triton_final_response"] == (index == 2)
        assert [line async for line in printed] == [{"left": False}]


async def test_when_it_cancels_its_stream_the_worker_stops(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker(stepwise=True))
    door = await neighbourhood.start_scheduler()
    options = {"requests": [{"tensors": [PROMPT]}], "cancel_after": 1}
    worker.step()
    lines = await run_triton(door.host.address, "emoe", "stream", **options)
    assert [line.get("texts") for line in lines] == [["0 "], None]
    await worker.ended.acquire()
    await door.until(num_running=0)


async def test_its_answers_are_those_of_generate_on_a_real_model(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("EMOE_SCHEDULER_MODEL_NAME", "tiny")
    model = save_small_model(tmp_path / "model")
    prompts = ["the first question", "another one"]
    async with running_up(model, tmp_path / "state", "--miss-policy=load", "--expert-memory=50%") as up:
        address = (await up.until(event="ready"))["scheduler"]
        expected = [await generated(address, prompt) for prompt in prompts]
        requests = [{"tensors": tensors_of(prompt), "request_id": str(index)} for index, prompt in enumerate(prompts)]
        parts = await run_triton(address, "tiny", "stream", requests=requests)
        wholes = [await run_triton(address, "tiny", "infer", tensors=tensors_of(prompt)) for prompt in prompts]
    assert [whole["texts"][0] for [whole] in wholes] == expected
    assert [spoken(parts, str(index)) for index in range(len(prompts))] == expected
    assert len(parts) > 2 * len(prompts), "the answers came in pieces"


def tensors_of(prompt: str) -> list[list[Any]]:
    return [["text_input", "BYTES", [prompt]], ["max_tokens", "INT32", [24]]]


def spoken(parts: list[dict[str, Any]], request_id: str) -> str:
    return "".join(text for part in parts if part.get("id") == request_id for text in part["texts"])


async def generated(address: str, prompt: str) -> str:
    request = generation_pb2.GenerateRequest(text=prompt, sampling=generation_pb2.Sampling(max_tokens=24))
    async with open_channel(address) as channel:
        stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        return "".join([piece.text async for piece in stub.Generate(request, timeout=60)])


async def test_our_protocol_is_its_protocol_number_for_number() -> None:
    async with triton_running("protocol") as printed:
        theirs = FileDescriptorProto.FromString(bytes.fromhex((await anext(printed))["protocol"]))
    ours = FileDescriptorProto()
    open_inference_pb2.DESCRIPTOR.CopyToProto(ours)
    assert ours.package == theirs.package
    assert set(fields_of(ours)) <= set(fields_of(theirs))
    assert {name for name, *_ in methods_of(ours)} == {
        *("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata"),
        *("ModelInfer", "ModelStreamInfer"),
    }
    assert set(methods_of(ours)) <= set(methods_of(theirs))
    shared = {name for name, *_ in fields_of(ours)}
    assert [field for field in fields_of(theirs) if field[0] in shared and field not in set(fields_of(ours))] == []


def fields_of(file: FileDescriptorProto) -> Iterator[tuple[Any, ...]]:
    """Message, field, number and type of each."""

    def walk(messages: Iterable[DescriptorProto], prefix: str) -> Iterator[tuple[Any, ...]]:
        for message in messages:
            for field in message.field:
                yield f"{prefix}{message.name}", field.name, field.number, field.type, field.label, field.type_name
            yield from walk(message.nested_type, f"{prefix}{message.name}.")

    yield from walk(file.message_type, "")


def methods_of(file: FileDescriptorProto) -> list[tuple[Any, ...]]:
    [service] = file.service
    assert service.name == "GRPCInferenceService"
    return [
        (method.name, method.input_type, method.output_type, method.client_streaming, method.server_streaming)
        for method in service.method
    ]
