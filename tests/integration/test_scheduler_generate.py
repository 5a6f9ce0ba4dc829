"""Streaming, order and bounds of the front door."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import pytest
from scheduler_neighbours import PATIENCE_SECONDS, Neighbourhood, ScriptedWorker

from emoe.core.errors import GenerationError, InvalidRequestError
from emoe.runtime.errors import retry_after_seconds
from emoe.v1 import generation_pb2, scheduler_pb2


@pytest.fixture
async def neighbourhood() -> AsyncIterator[Neighbourhood]:
    async with contextlib.AsyncExitStack() as stack:
        yield Neighbourhood(stack)


async def test_answer_streams_through_and_its_first_message_says_how_it_was_taken(neighbourhood) -> None:
    await neighbourhood.start_worker(ScriptedWorker("w-7"))
    door = await neighbourhood.start_scheduler()

    messages = await door.answer("hello", task="qa", request_id="mine")

    assert [message.text for message in messages] == ["0 ", "1 ", "2 "]
    assert [list(message.token_ids) for message in messages] == [[0], [1], [2]]
    first, middle, last = messages
    assert (first.request_id, first.task, first.worker_id) == ("mine", "qa", "w-7")
    assert first.queue_seconds >= 0
    assert (middle.request_id, middle.worker_id) == ("", "")
    assert last.finish_reason == generation_pb2.FINISH_REASON_STOP
    assert last.usage.num_completion_tokens == 3


async def test_worker_gets_the_request_with_task_and_id_filled_in(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker())
    door = await neighbourhood.start_scheduler()

    messages = await door.answer("hello", sampling=generation_pb2.Sampling(temperature=0.5, stop=["x"]))

    (request,) = worker.requests
    assert request.task == "unknown"
    assert request.request_id == messages[0].request_id != ""
    assert (request.text, request.sampling.temperature, list(request.sampling.stop)) == ("hello", 0.5, ["x"])


async def test_first_words_reach_the_client_before_the_last_are_made(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker(stepwise=True))
    door = await neighbourhood.start_scheduler()

    call = door.generate("hello")
    words = aiter(call)
    worker.step()

    assert (await anext(words)).text == "0 "
    worker.step(2)
    assert [message.text async for message in words] == ["1 ", "2 "]


async def test_requests_start_in_order_of_arrival(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker(num_sequences=1, stepwise=True))
    door = await neighbourhood.start_scheduler()

    answers = []
    for index in range(5):
        answers.append(asyncio.create_task(door.answer(f"prompt {index}")))
        await door.until(num_running=1, num_waiting=index)
    worker.step(15)
    await asyncio.gather(*answers)

    assert worker.prompts == [f"prompt {index}" for index in range(5)]


async def test_worker_never_gets_more_than_its_free_sequences(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker(num_sequences=2))
    door = await neighbourhood.start_scheduler()

    await asyncio.gather(*(door.answer("hello") for _ in range(20)))

    assert worker.most_at_once <= 2
    assert len(worker.prompts) == 20


async def test_two_workers_share_the_load(neighbourhood) -> None:
    workers = [await neighbourhood.start_worker(ScriptedWorker(name, stepwise=True)) for name in ("a", "b")]
    door = await neighbourhood.start_scheduler()

    answers = [asyncio.create_task(door.answer("hello")) for _ in range(4)]
    await door.until(num_running=4)
    for worker in workers:
        worker.step(6)
    await asyncio.gather(*answers)

    assert [len(worker.prompts) for worker in workers] == [2, 2]


async def test_full_queue_refuses_with_a_retry_delay(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker(num_sequences=1, stepwise=True))
    door = await neighbourhood.start_scheduler(max_queued_requests=2)
    answers = [asyncio.create_task(door.answer("hello")) for _ in range(3)]
    await door.until(num_running=1, num_waiting=2)

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await door.answer("one too many")

    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 0 < retry_after_seconds(refused.value) <= 30
    worker.step(9)
    await asyncio.gather(*answers)


async def test_queue_is_bounded_by_bytes_too(neighbourhood) -> None:
    door = await neighbourhood.start_scheduler(max_queued_bytes=10_000)
    waiting = door.generate("x" * 9_000)
    await door.until(num_waiting=1)

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await door.answer("y" * 2_000)

    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "bytes" in refused.value.details()
    waiting.cancel()


async def test_requests_wait_for_the_first_worker(neighbourhood) -> None:
    door = await neighbourhood.start_scheduler()
    answer = asyncio.create_task(door.answer("early"))
    await door.until(num_waiting=1, num_workers=0)

    await neighbourhood.start_worker(ScriptedWorker())

    assert len(await answer) == 3


async def test_prompt_too_long_for_any_worker_is_left_to_a_worker_to_refuse(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker())
    worker.error = InvalidRequestError("the prompt has 9000 tokens; at most 256 fit")
    door = await neighbourhood.start_scheduler()

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await door.answer("word " * 9_000)

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == "the prompt has 9000 tokens; at most 256 fit"


async def test_failure_of_one_generation_reaches_its_client_as_it_is(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker())
    worker.error = GenerationError("NaN in the logits")
    door = await neighbourhood.start_scheduler()

    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await door.answer("hello")

    assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.INTERNAL, "NaN in the logits")
    worker.error = None
    assert len(await door.answer("hello")) == 3


async def test_status_names_tasks_and_counts(neighbourhood) -> None:
    await neighbourhood.start_worker(ScriptedWorker())
    door = await neighbourhood.start_scheduler(
        extra_tasks=("poetry",), max_queued_requests=12, max_queued_bytes=3_000_000_000
    )
    await door.until(num_workers=1)

    status = await door.stub.GetStatus(scheduler_pb2.GetSchedulerStatusRequest())

    assert "poetry" in status.tasks
    assert "qa" in status.tasks
    assert (status.num_waiting, status.num_running) == (0, 0)
    assert (status.max_queued_requests, status.max_queued_bytes) == (12, 3_000_000_000)


async def test_loader_hears_of_running_and_waiting_tasks(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker(num_sequences=1, stepwise=True))
    door = await neighbourhood.start_scheduler()
    sampling = generation_pb2.Sampling(max_tokens=64)
    answers = [asyncio.create_task(door.answer("x" * 40, task="code", sampling=sampling)) for _ in range(2)]

    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            report = await neighbourhood.loader.reports.get()
            if report.loads and report.loads[0].num_waiting:
                break
    (load,) = report.loads
    assert (load.task, load.num_running, load.num_waiting) == ("code", 1, 1)
    assert (load.num_prompt_tokens, load.num_expected_tokens) == (20, 64)
    assert report.num_prompts == 1

    worker.step(6)
    await asyncio.gather(*answers)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while report.loads:
            report = await neighbourhood.loader.reports.get()
    assert report.num_prompts == 2
