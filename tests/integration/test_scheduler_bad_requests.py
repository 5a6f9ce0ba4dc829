"""Requests that can never succeed are refused at the front door, with a reason, and nothing else suffers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import grpc
import pytest
from scheduler_neighbours import FrontDoor, Neighbourhood, ScriptedWorker

from emoe.v1.generation_pb2 import ChatMessage, ChatMessages, GenerateRequest, Sampling, Slo, TokenIds

BAD_REQUESTS = {
    "no prompt": (GenerateRequest(), "prompt is empty"),
    "empty text": (GenerateRequest(text=""), "prompt is empty"),
    "empty chat": (GenerateRequest(chat=ChatMessages()), "prompt is empty"),
    "no token ids": (GenerateRequest(token_ids=TokenIds()), "prompt is empty"),
    "chat without role": (GenerateRequest(chat=ChatMessages(messages=[ChatMessage(content="x")])), "role"),
    "raw chat": (GenerateRequest(chat=ChatMessages(messages=[ChatMessage(role="user")]), raw=True), "raw"),
    "unknown task": (GenerateRequest(text="x", task="cooking"), "cooking"),
    "negative max_tokens": (GenerateRequest(text="x", sampling=Sampling(max_tokens=-1)), "max_tokens"),
    "zero max_tokens": (GenerateRequest(text="x", sampling=Sampling(max_tokens=0)), "max_tokens"),
    "negative temperature": (GenerateRequest(text="x", sampling=Sampling(temperature=-0.1)), "temperature"),
    "temperature not a number": (GenerateRequest(text="x", sampling=Sampling(temperature=float("nan"))), "temperature"),
    "infinite temperature": (GenerateRequest(text="x", sampling=Sampling(temperature=float("inf"))), "temperature"),
    "top_p of zero": (GenerateRequest(text="x", sampling=Sampling(top_p=0)), "top_p"),
    "top_p not a number": (GenerateRequest(text="x", sampling=Sampling(top_p=float("nan"))), "top_p"),
    "negative top_k": (GenerateRequest(text="x", sampling=Sampling(top_k=-5)), "top_k"),
    "too many stop strings": (GenerateRequest(text="x", sampling=Sampling(stop=["a"] * 17)), "stop"),
    "empty stop string": (GenerateRequest(text="x", sampling=Sampling(stop=[""])), "stop"),
    "too many logprobs": (GenerateRequest(text="x", sampling=Sampling(num_logprobs=21)), "num_logprobs"),
    "negative target": (GenerateRequest(text="x", slo=Slo(ttft_seconds=-1)), "ttft_seconds"),
    "target not a number": (GenerateRequest(text="x", slo=Slo(tpot_seconds=float("nan"))), "tpot_seconds"),
    "long request id": (GenerateRequest(text="x", request_id="r" * 129), "request_id"),
    "huge payload": (GenerateRequest(text="x" * 2_000_000), "bytes"),
}


@pytest.fixture
async def neighbourhood() -> AsyncIterator[Neighbourhood]:
    async with contextlib.AsyncExitStack() as stack:
        yield Neighbourhood(stack)


async def refusal(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        [message async for message in call]
    return refused.value


async def test_bad_requests_are_refused_by_name_and_good_ones_still_answered(neighbourhood, subtests) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker())
    door = await neighbourhood.start_scheduler()

    for name, (request, reason) in BAD_REQUESTS.items():
        with subtests.test(name):
            error = await refusal(door.stub.Generate(request, timeout=10))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert reason in error.details()

    assert worker.prompts == []
    assert len(await door.answer("fine")) == 3


async def test_bytes_that_are_no_request_are_refused(neighbourhood) -> None:
    door = await neighbourhood.start_scheduler()
    generate = door.channel.unary_stream("/emoe.v1.SchedulerService/Generate")

    error = await refusal(generate(b"\xff\xff\xff\xff", timeout=10))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_payload_beyond_the_transport_limit_is_refused_by_grpc_itself(neighbourhood) -> None:
    door = await neighbourhood.start_scheduler()
    channel = grpc.aio.insecure_channel(door.host.address, options=[("grpc.max_send_message_length", -1)])

    async with channel:
        error = await refusal(FrontDoor(channel).generate("x" * (17 * 1024 * 1024)))

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await door.until(num_waiting=0)


async def test_call_without_a_deadline_gets_the_default_one(neighbourhood) -> None:
    door = await neighbourhood.start_scheduler(default_deadline_seconds=0.1)

    error = await refusal(door.generate("nobody is there", timeout=None))

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await door.until(num_waiting=0)


async def test_absurd_deadline_is_capped(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker())
    door = await neighbourhood.start_scheduler(max_deadline_seconds=50)

    await door.answer("hello", timeout=10**6)

    assert 40 < worker.deadlines[0] < 51


async def test_worker_gets_what_is_left_of_the_deadline(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker())
    door = await neighbourhood.start_scheduler()

    await door.answer("hello", timeout=7)

    assert 5 < worker.deadlines[0] < 7.1


async def test_deadline_that_passes_in_the_queue_frees_the_place(neighbourhood) -> None:
    door = await neighbourhood.start_scheduler()

    error = await refusal(door.generate("nobody is there", timeout=0.1))

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await door.until(num_waiting=0)
