"""What the front door does when clients leave, workers die and the loader restarts: nothing hangs, nothing is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from scheduler_neighbours import PATIENCE_SECONDS, Neighbourhood, ScriptedWorker

from emoe.runtime.channels import open_channel
from emoe.runtime.errors import retry_after_seconds
from emoe.scheduler.service import MAX_REFUSALS
from emoe.v1 import loader_pb2, worker_pb2
from emoe.v1.worker_pb2_grpc import WorkerServiceStub

WORKER_PROCESS = Path(__file__).with_name("scheduler_worker_process.py")


@pytest.fixture
async def neighbourhood() -> AsyncIterator[Neighbourhood]:
    async with contextlib.AsyncExitStack() as stack:
        yield Neighbourhood(stack)


async def failure(words) -> grpc.aio.AioRpcError:
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            [word async for word in words]
    return failed.value


async def test_client_that_leaves_ends_its_generation_within_one_message(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker(num_sequences=1, stepwise=True))
    door = await neighbourhood.start_scheduler()
    call = door.generate("hello")
    worker.step()
    await call.read()

    call.cancel()

    async with asyncio.timeout(PATIENCE_SECONDS):
        await worker.ended.acquire()
    await door.until(num_running=0)
    worker.step(3)
    assert len(await door.answer("next")) == 3


async def test_client_that_leaves_the_queue_frees_its_place_at_once(neighbourhood) -> None:
    door = await neighbourhood.start_scheduler()
    call = door.generate("hello")
    await door.until(num_waiting=1)

    call.cancel()

    await door.until(num_waiting=0)


async def test_cancel_storm_leaves_nothing_behind(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker(num_sequences=4, stepwise=True))
    door = await neighbourhood.start_scheduler()

    for _ in range(3):
        calls = [door.generate("hello") for _ in range(20)]
        await door.until(num_running=4, num_waiting=16)
        for call in calls:
            call.cancel()
        await door.until(num_running=0, num_waiting=0)

    worker.step(3)
    assert len(await door.answer("still there")) == 3


async def test_worker_that_dies_before_the_first_token_is_replaced_by_another(neighbourhood) -> None:
    doomed = await neighbourhood.start_worker(ScriptedWorker("doomed", num_sequences=9, stepwise=True))
    door = await neighbourhood.start_scheduler()
    answer = asyncio.create_task(door.answer("hello"))
    await doomed.started.acquire()
    await neighbourhood.start_worker(ScriptedWorker("second"))
    await door.until(num_workers=2)

    await doomed.server.stop(None)

    messages = await answer
    assert [message.text for message in messages] == ["0 ", "1 ", "2 "]
    assert messages[0].worker_id == "second"


async def test_only_worker_that_dies_before_the_first_token_is_reported(neighbourhood) -> None:
    doomed = await neighbourhood.start_worker(ScriptedWorker("doomed", stepwise=True))
    door = await neighbourhood.start_scheduler()
    call = door.generate("hello")
    await doomed.started.acquire()

    await doomed.server.stop(None)

    error = await failure(call)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "worker doomed is unavailable" in error.details()
    assert "before the first token" in error.details()


async def test_worker_that_dies_after_the_first_token_ends_the_stream(neighbourhood) -> None:
    doomed = await neighbourhood.start_worker(ScriptedWorker("doomed", stepwise=True))
    await neighbourhood.start_worker(ScriptedWorker("second", num_sequences=1))
    door = await neighbourhood.start_scheduler()
    words = aiter(door.generate("hello"))
    doomed.step()
    assert (await anext(words)).worker_id == "doomed"

    await doomed.server.stop(None)

    error = await failure(words)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "after 1 messages" in error.details()


async def test_request_that_a_full_worker_refused_is_answered_by_another(neighbourhood) -> None:
    full = await neighbourhood.start_worker(ScriptedWorker("full", num_sequences=9))
    full.num_refusals_to_come, full.refusal_seconds = 99, 60.0
    await neighbourhood.start_worker(ScriptedWorker("second"))
    door = await neighbourhood.start_scheduler()

    messages = await door.answer("hello")

    assert [message.text for message in messages] == ["0 ", "1 ", "2 "]
    assert messages[0].worker_id == "second"
    assert len(full.prompts) == 1


async def test_only_worker_is_asked_again_after_a_refusal_and_the_answer_is_whole(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker())
    worker.num_refusals_to_come = MAX_REFUSALS
    door = await neighbourhood.start_scheduler()

    assert [message.text for message in await door.answer("hello")] == ["0 ", "1 ", "2 "]

    assert worker.prompts == ["hello"] * (MAX_REFUSALS + 1)
    assert len({request.request_id for request in worker.requests}) == 1


async def test_refusal_is_passed_on_after_a_few_with_the_workers_own_delay(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker())
    worker.num_refusals_to_come = 99
    door = await neighbourhood.start_scheduler()

    error = await failure(door.generate("hello"))

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (error.details(), retry_after_seconds(error)) == ("there are requests enough", 0.01)
    assert len(worker.prompts) == MAX_REFUSALS + 1
    await door.until(num_running=0, num_waiting=0)


async def test_killed_worker_process_ends_the_stream_at_once(neighbourhood, tmp_path) -> None:
    address = f"unix:{tmp_path}/worker.sock"
    process = await neighbourhood.start_process(str(WORKER_PROCESS), address)
    async with open_channel(address) as channel:
        state = await WorkerServiceStub(channel).GetState(worker_pb2.GetStateRequest(), wait_for_ready=True, timeout=30)
    await neighbourhood.loader.list_workers([state.state])
    door = await neighbourhood.start_scheduler(num_workers=1)
    words = aiter(door.generate("hello"))
    assert (await anext(words)).worker_id == "doomed"

    process.kill()

    assert await process.wait() == -signal.SIGKILL
    assert (await failure(words)).code() is grpc.StatusCode.UNAVAILABLE


async def test_worker_that_hangs_and_is_no_longer_listed_ends_its_calls(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker("hung", stepwise=True))
    door = await neighbourhood.start_scheduler()
    words = aiter(door.generate("hello"))
    worker.step()
    await anext(words)
    worker.hung = True

    await neighbourhood.relist(without=worker)

    error = await failure(words)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "stopped answering" in error.details()


async def test_stream_survives_a_loader_that_restarts_with_an_empty_list(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker(stepwise=True))
    door = await neighbourhood.start_scheduler()
    words = aiter(door.generate("hello"))
    worker.step()
    await anext(words)

    await neighbourhood.stop_loader()
    await neighbourhood.loader.list_workers([])
    await neighbourhood.start_loader()
    await door.until(num_workers=0)

    worker.step(2)
    assert [message.text async for message in words] == ["1 ", "2 "]
    await neighbourhood.relist()
    worker.step(3)
    assert len(await door.answer("after")) == 3


async def test_last_list_stands_while_the_loader_is_gone(neighbourhood) -> None:
    await neighbourhood.start_worker(ScriptedWorker(num_sequences=1))
    door = await neighbourhood.start_scheduler()
    await door.answer("before")

    await neighbourhood.stop_loader()

    for _ in range(4):
        assert len(await door.answer("meanwhile")) == 3


async def test_worker_that_broke_a_call_is_used_again_once_it_answers(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker(stepwise=True))
    port = worker.address
    door = await neighbourhood.start_scheduler()
    lost = door.generate("lost")
    await worker.started.acquire()
    await worker.server.stop(None)
    assert (await failure(lost)).code() is grpc.StatusCode.UNAVAILABLE
    await door.until(num_workers=0)

    await neighbourhood.restart_worker(worker, port)

    worker.step(3)
    assert len(await door.answer("found")) == 3


async def test_task_reports_start_anew_with_a_new_loader(neighbourhood) -> None:
    door = await neighbourhood.start_scheduler()
    call = door.generate("waits", task="math")
    await door.until(num_waiting=1)
    await neighbourhood.stop_loader()
    while not neighbourhood.loader.reports.empty():
        neighbourhood.loader.reports.get_nowait()

    await neighbourhood.start_loader()

    async with asyncio.timeout(PATIENCE_SECONDS):
        report = await neighbourhood.loader.reports.get()
    assert [(load.task, load.num_waiting) for load in report.loads] == [("math", 1)]
    assert isinstance(report, loader_pb2.ReportTasksRequest)
    call.cancel()
