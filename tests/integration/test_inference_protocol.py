"""The Open Inference Protocol at the front door, over real gRPC: answers, streams, refusals, drains."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import pytest
from scheduler_neighbours import PATIENCE_SECONDS, FrontDoor, Neighbourhood, ScriptedWorker

from emoe.core.errors import InvalidRequestError
from emoe.oip import open_inference_pb2 as oip
from emoe.oip.open_inference_pb2_grpc import GRPCInferenceServiceStub
from emoe.runtime.errors import retry_after_seconds
from emoe.scheduler.inference import MAX_REQUESTS_PER_STREAM
from emoe.v1 import scheduler_pb2


@pytest.fixture
async def neighbourhood() -> AsyncIterator[Neighbourhood]:
    async with contextlib.AsyncExitStack() as stack:
        yield Neighbourhood(stack)


def asking(prompt: str, *, model_name: str = "emoe", **fields: Any) -> oip.ModelInferRequest:
    contents = oip.InferTensorContents(bytes_contents=[prompt.encode()])
    tensor = oip.ModelInferRequest.InferInputTensor(name="text_input", datatype="BYTES", shape=[1], contents=contents)
    return oip.ModelInferRequest(model_name=model_name, inputs=[tensor], **fields)


def flag(value: bool) -> oip.InferParameter:
    return oip.InferParameter(bool_param=value)


def text_of(response: oip.ModelInferResponse) -> str:
    [output] = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("text_output", "BYTES", [1])
    return b"".join(output.contents.bytes_contents).decode()


def is_final(response: oip.ModelStreamInferResponse) -> bool:
    return response.infer_response.parameters["triton_final_response"].bool_param


class Stream:
    """One ModelStreamInfer that is written to and read by turns."""

    def __init__(self, door: FrontDoor) -> None:
        self.call = GRPCInferenceServiceStub(door.channel).ModelStreamInfer(timeout=PATIENCE_SECONDS)

    async def send(self, *requests: oip.ModelInferRequest) -> None:
        for request in requests:
            await self.call.write(request)

    async def part(self) -> oip.ModelStreamInferResponse:
        response = await self.call.read()
        assert isinstance(response, oip.ModelStreamInferResponse), "the stream ended"
        return response

    async def parts(self, num_answers: int = 1) -> list[oip.ModelStreamInferResponse]:
        """Until so many answers are final."""
        found: list[oip.ModelStreamInferResponse] = []
        while sum(map(is_final, found)) < num_answers:
            found.append(await self.part())
        return found


def stub_of(door: FrontDoor) -> Any:
    return GRPCInferenceServiceStub(door.channel)


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value


async def test_the_whole_answer_comes_with_its_figures(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker("w-7"))
    door = await neighbourhood.start_scheduler()
    request = asking("hello", id="mine", parameters={"task": oip.InferParameter(string_param="qa")})

    response = await stub_of(door).ModelInfer(request, timeout=10)

    assert (text_of(response), response.id, response.model_name) == ("0 1 2 ", "mine", "emoe")
    parameters = response.parameters
    assert parameters["finish_reason"].string_param == "stop"
    assert (parameters["task"].string_param, parameters["worker_id"].string_param) == ("qa", "w-7")
    assert (parameters["num_prompt_tokens"].int64_param, parameters["num_completion_tokens"].int64_param) == (7, 3)
    [sent] = worker.requests
    assert (sent.text, sent.task, sent.request_id) == ("hello", "qa", "mine")


async def test_an_inference_waits_in_its_tenants_queue(neighbourhood) -> None:
    door = await neighbourhood.start_scheduler()
    request = asking("hello", id="mine", parameters={"tenant": oip.InferParameter(string_param="blue")})
    call = stub_of(door).ModelInfer(request, timeout=PATIENCE_SECONDS)
    await door.until(num_waiting=1)
    call.cancel()
    await door.until(num_waiting=0)
    (ended,) = (await door.stub.ListDecisions(scheduler_pb2.ListDecisionsRequest())).decisions
    assert (ended.request_id, ended.tenant) == ("mine", "blue")


async def test_a_tenants_name_that_is_too_long_is_refused(neighbourhood) -> None:
    door = await neighbourhood.start_scheduler()
    request = asking("hello", parameters={"tenant": oip.InferParameter(string_param="x" * 65)})
    refused = await refusal(stub_of(door).ModelInfer(request, timeout=PATIENCE_SECONDS))
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "tenant has more than 64 characters" in (refused.details() or "")


async def test_an_answer_goes_out_raw_when_its_request_came_raw(neighbourhood) -> None:
    await neighbourhood.start_worker(ScriptedWorker())
    door = await neighbourhood.start_scheduler()
    request = asking("hello")
    request.inputs[0].ClearField("contents")
    request.raw_input_contents.append(b"\x05\x00\x00\x00hello")

    response = await stub_of(door).ModelInfer(request, timeout=10)

    assert list(response.raw_output_contents) == [b"\x06\x00\x00\x000 1 2 "]
    assert not response.outputs[0].HasField("contents")


async def test_server_and_model_say_what_they_are(neighbourhood) -> None:
    await neighbourhood.start_worker(ScriptedWorker())
    stub = stub_of(await neighbourhood.start_scheduler(model_name="tiny"))
    assert (await stub.ServerLive(oip.ServerLiveRequest())).live
    assert (await stub.ServerReady(oip.ServerReadyRequest())).ready
    assert (await stub.ServerMetadata(oip.ServerMetadataRequest())).name == "emoe"
    assert (await stub.ModelReady(oip.ModelReadyRequest(name="tiny", version="1"))).ready
    metadata = await stub.ModelMetadata(oip.ModelMetadataRequest(name="tiny"))
    assert (metadata.name, metadata.versions, metadata.platform) == ("tiny", ["1"], "emoe")
    assert [(one.name, one.datatype, one.shape) for one in metadata.outputs] == [("text_output", "BYTES", [1])]


async def test_without_a_worker_it_is_live_and_not_ready(neighbourhood) -> None:
    stub = stub_of(await neighbourhood.start_scheduler())
    assert (await stub.ServerLive(oip.ServerLiveRequest())).live
    assert not (await stub.ServerReady(oip.ServerReadyRequest())).ready
    assert not (await stub.ModelReady(oip.ModelReadyRequest(name="emoe"))).ready


@pytest.mark.parametrize(("name", "version"), [("gpt", ""), ("", ""), ("emoe", "2")], ids=["other", "none", "version"])
async def test_a_model_that_is_not_served_is_not_found(neighbourhood, name: str, version: str) -> None:
    door = await neighbourhood.start_scheduler()
    stub, stream = stub_of(door), Stream(door)
    request = asking("hello", model_name=name, model_version=version)
    await stream.send(request)
    [failed] = await stream.parts()
    refused = [
        await refusal(stub.ModelReady(oip.ModelReadyRequest(name=name, version=version))),
        await refusal(stub.ModelMetadata(oip.ModelMetadataRequest(name=name, version=version))),
        await refusal(stub.ModelInfer(request, timeout=10)),
    ]
    assert {error.code() for error in refused} == {grpc.StatusCode.NOT_FOUND}
    assert {f"NOT_FOUND: {error.details()}" for error in refused} == {failed.error_message}
    assert ("'emoe'" if name != "emoe" else "'1'") in failed.error_message


async def test_what_generate_refuses_is_refused_alike(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker())
    stub = stub_of(await neighbourhood.start_scheduler())
    unknown = {"task": oip.InferParameter(string_param="cooking")}
    streaming = {"stream": flag(True)}
    for request, reason in [
        (asking("hello", parameters=unknown), "cooking"),
        (asking(""), "prompt is empty"),
        (asking("hello", parameters=streaming), "ModelStreamInfer"),
        (asking("hello", id="x" * 200), "request_id"),
    ]:
        error = await refusal(stub.ModelInfer(request, timeout=10))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert reason in str(error.details())
    worker.error = InvalidRequestError("the prompt has 9000 tokens; at most 256 fit")
    error = await refusal(stub.ModelInfer(asking("hello"), timeout=10))
    assert error.details() == "the prompt has 9000 tokens; at most 256 fit"


async def test_a_full_queue_refuses_with_a_delay_and_tells_streams_too(neighbourhood) -> None:
    door = await neighbourhood.start_scheduler(max_queued_requests=1)
    waiting = stub_of(door).ModelInfer(asking("first"), timeout=10)
    await door.until(num_waiting=1)

    error = await refusal(stub_of(door).ModelInfer(asking("second"), timeout=10))
    stream = Stream(door)
    await stream.send(asking("third", id="3"))
    [failed] = await stream.parts()

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert retry_after_seconds(error) is not None
    assert failed.error_message.startswith("RESOURCE_EXHAUSTED: 1 requests are waiting")
    assert failed.infer_response.id == "3"
    waiting.cancel()


async def test_the_call_and_the_request_may_each_set_a_deadline(neighbourhood) -> None:
    door = await neighbourhood.start_scheduler()
    timeout = {"timeout": oip.InferParameter(int64_param=50_000)}
    stream = Stream(door)
    await stream.send(asking("nobody is there", parameters=timeout))
    [failed] = await stream.parts()
    assert failed.error_message.startswith("DEADLINE_EXCEEDED: request ")
    for call in (
        stub_of(door).ModelInfer(asking("nobody is there", parameters=timeout), timeout=10),
        stub_of(door).ModelInfer(asking("nobody is there"), timeout=0.05),
    ):
        assert (await refusal(call)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await door.until(num_waiting=0)


async def test_a_stream_carries_the_answer_word_by_word(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker(stepwise=True))
    stream = Stream(await neighbourhood.start_scheduler())
    await stream.send(asking("hello", id="mine"))

    worker.step()
    first = await stream.part()
    worker.step(2)
    rest = await stream.parts()

    assert text_of(first.infer_response) == "0 "
    assert first.infer_response.parameters["worker_id"].string_param == "worker-1"
    assert [text_of(part.infer_response) for part in rest] == ["1 ", "2 "]
    assert [is_final(part) for part in (first, *rest)] == [False, False, True]
    assert rest[-1].infer_response.parameters["num_completion_tokens"].int64_param == 3
    assert {part.infer_response.id for part in (first, *rest)} == {"mine"}


async def test_a_stream_gives_an_answer_in_one_piece_if_asked_to(neighbourhood) -> None:
    await neighbourhood.start_worker(ScriptedWorker())
    stream = Stream(await neighbourhood.start_scheduler())
    await stream.send(asking("hello", parameters={"stream": flag(False)}))
    [part] = await stream.parts()
    assert text_of(part.infer_response) == "0 1 2 "


async def test_requests_of_one_stream_run_side_by_side_and_one_failure_spares_the_others(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker(num_sequences=2, stepwise=True))
    door = await neighbourhood.start_scheduler()
    stream = Stream(door)
    await stream.send(asking("one", id="1"), asking("", id="bad"), asking("two", id="2"))
    await door.until(num_running=2)
    worker.step(6)
    await stream.call.done_writing()
    parts = await stream.parts(num_answers=3)
    texts = {key: "".join(text_of(part.infer_response) for part in mine) for key, mine in by_id(parts) if key != "bad"}
    assert texts == {"1": "0 1 2 ", "2": "0 1 2 "}
    [failed] = [part for part in parts if part.error_message]
    assert failed.error_message.startswith("INVALID_ARGUMENT: the prompt is empty")
    assert await stream.call.read() is grpc.aio.EOF
    assert await stream.call.code() is grpc.StatusCode.OK


def by_id(
    parts: Iterable[oip.ModelStreamInferResponse],
) -> Iterable[tuple[str, list[oip.ModelStreamInferResponse]]]:
    kept = list(parts)
    return [
        (key, [part for part in kept if part.infer_response.id == key]) for key in {p.infer_response.id for p in kept}
    ]


async def test_a_client_that_leaves_its_stream_ends_all_that_it_asked(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker(num_sequences=2, stepwise=True))
    door = await neighbourhood.start_scheduler()
    stream = Stream(door)
    await stream.send(asking("one"), asking("two"), asking("waits"))
    await door.until(num_running=2, num_waiting=1)
    async with asyncio.timeout(PATIENCE_SECONDS):
        for _ in range(2):
            await worker.started.acquire()
        stream.call.cancel()
        for _ in range(2):
            await worker.ended.acquire()
    await door.until(num_running=0, num_waiting=0)


async def test_a_stream_reads_no_more_than_its_bound(neighbourhood) -> None:
    door = await neighbourhood.start_scheduler(max_queued_requests=10 * MAX_REQUESTS_PER_STREAM)
    stream = Stream(door)
    await stream.send(*(asking(f"{index}") for index in range(MAX_REQUESTS_PER_STREAM + 5)))
    await door.until(num_waiting=MAX_REQUESTS_PER_STREAM)
    other = door.generate("from elsewhere")
    await door.until(num_waiting=MAX_REQUESTS_PER_STREAM + 1)
    other.cancel()
    await neighbourhood.start_worker(ScriptedWorker(num_sequences=64))
    assert len(await stream.parts(num_answers=MAX_REQUESTS_PER_STREAM + 5)) == 3 * (MAX_REQUESTS_PER_STREAM + 5)


async def test_a_drain_lets_a_stream_finish_what_runs_and_takes_no_more(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker(stepwise=True))
    door = await neighbourhood.start_scheduler(drain_seconds=PATIENCE_SECONDS)
    stream, idle = Stream(door), Stream(door)
    await stream.send(asking("hello"))
    await idle.send(asking("", id="only to be there"))
    await idle.parts()
    worker.step()
    first = await stream.part()
    assert door.host is not None
    running = asyncio.create_task(door.host.run())

    asyncio.get_running_loop().call_soon(door.host.stop)  # once it runs
    assert await idle.call.code() is grpc.StatusCode.UNAVAILABLE
    worker.step(2)
    rest = await stream.parts()

    assert [text_of(part.infer_response) for part in (first, *rest)] == ["0 ", "1 ", "2 "]
    assert await stream.call.code() is grpc.StatusCode.UNAVAILABLE
    assert "shutting down" in (await stream.call.details() or "")
    async with asyncio.timeout(PATIENCE_SECONDS):
        await running
