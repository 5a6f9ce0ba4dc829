"""The scheduler's watch on its workers' health: who dies, hangs or drains gets nothing new, and drains in peace."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from scheduler_neighbours import PATIENCE_SECONDS, FrontDoor, Neighbourhood, ScriptedWorker

from emoe.runtime.channels import open_channel
from emoe.v1 import generation_pb2, loader_pb2, scheduler_pb2, worker_pb2
from emoe.v1.worker_pb2_grpc import WorkerServiceStub

WORKER_PROCESS = Path(__file__).with_name("scheduler_worker_process.py")
OUT_SECONDS = 2.0


@pytest.fixture
async def neighbourhood() -> AsyncIterator[Neighbourhood]:
    async with contextlib.AsyncExitStack() as stack:
        yield Neighbourhood(stack)


async def start_process(
    neighbourhood: Neighbourhood, tmp_path: Path
) -> tuple[asyncio.subprocess.Process, loader_pb2.WorkerState]:
    address = f"unix:{tmp_path}/worker.sock"
    process = await neighbourhood.start_process(str(WORKER_PROCESS), address)
    async with open_channel(address) as channel:
        answer = await WorkerServiceStub(channel).GetState(
            worker_pb2.GetStateRequest(), wait_for_ready=True, timeout=PATIENCE_SECONDS
        )
    return process, answer.state


async def start_both(neighbourhood: Neighbourhood, tmp_path: Path) -> tuple[asyncio.subprocess.Process, FrontDoor]:
    """A process that has more room than the worker beside it; at the scheduler's own pace."""
    process, state = await start_process(neighbourhood, tmp_path)
    other = await neighbourhood.start_worker(ScriptedWorker("other"))
    door = await neighbourhood.start_scheduler(probe_interval_seconds=1.0, probe_timeout_seconds=2.0)
    await neighbourhood.loader.list_workers([state, other.state()])
    await door.until(num_workers=2)
    return process, door


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
async def test_a_dead_worker_is_out_within_two_seconds_though_it_is_listed(
    neighbourhood: Neighbourhood, tmp_path: Path, blow: signal.Signals
) -> None:
    process, door = await start_both(neighbourhood, tmp_path)
    began = time.monotonic()

    process.send_signal(blow)

    await door.until(num_workers=1)
    assert time.monotonic() - began < OUT_SECONDS
    assert {(await door.answer("hello"))[0].worker_id for _ in range(4)} == {"other"}


async def test_a_request_that_has_not_begun_on_a_hung_worker_is_answered_by_another(
    neighbourhood: Neighbourhood, tmp_path: Path
) -> None:
    """Long before the calls of the silent one are ended."""
    process, state = await start_process(neighbourhood, tmp_path)
    other = await neighbourhood.start_worker(ScriptedWorker("other", num_sequences=1))
    door = await neighbourhood.start_scheduler(silence_seconds=10 * PATIENCE_SECONDS)
    await neighbourhood.loader.list_workers([state, other.state()])
    await door.until(num_workers=2)
    process.send_signal(signal.SIGSTOP)

    messages = await door.answer("hello", request_id="mine")

    assert messages[0].worker_id == "other"
    listed = await door.stub.ListDecisions(scheduler_pb2.ListDecisionsRequest(request_id="mine"))
    assert [one.worker_id for one in listed.decisions] == ["other", "other", state.worker_id, state.worker_id]


async def test_a_worker_that_hung_is_used_again_once_it_answers(neighbourhood: Neighbourhood, tmp_path: Path) -> None:
    process, door = await start_both(neighbourhood, tmp_path)
    process.send_signal(signal.SIGSTOP)
    await door.until(num_workers=1)

    process.send_signal(signal.SIGCONT)

    await door.until(num_workers=2)


async def test_calls_of_a_listed_worker_end_when_it_has_been_silent_for_long(
    neighbourhood: Neighbourhood, tmp_path: Path
) -> None:
    process, state = await start_process(neighbourhood, tmp_path)
    await neighbourhood.loader.list_workers([state])
    door = await neighbourhood.start_scheduler(
        num_workers=1, health_interval_seconds=0.05, health_timeout_seconds=0.1, silence_seconds=0.3
    )
    words = aiter(door.generate("hello"))
    await anext(words)

    process.send_signal(signal.SIGSTOP)

    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await anext(words)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_worker_that_drains_ends_its_calls_and_gets_no_new_ones(
    neighbourhood: Neighbourhood, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "emoe.scheduler.worker")
    draining = await neighbourhood.start_worker(ScriptedWorker("draining", num_sequences=9, stepwise=True))
    door = await neighbourhood.start_scheduler()
    words = aiter(door.generate("begun before"))
    draining.step()
    assert (await anext(words)).worker_id == "draining"
    await neighbourhood.start_worker(ScriptedWorker("other"))
    await door.until(num_workers=2)

    await draining.say_serving(False)
    await door.until(num_workers=1)
    stopping = asyncio.create_task(draining.server.stop(PATIENCE_SECONDS))
    await neighbourhood.relist(without=draining)
    # Until probes have failed, for its port is closed: no reason to end what it runs.
    while caplog.text.count("does not answer") < 3:
        assert (await door.answer("begun after"))[0].worker_id == "other"

    draining.step(2)
    assert [message.text async for message in words] == ["1 ", "2 "]
    await stopping


async def test_a_request_waits_for_the_only_worker_to_serve_again(neighbourhood: Neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker())
    door = await neighbourhood.start_scheduler()
    await worker.say_serving(False)
    await door.until(num_workers=0)
    answer = asyncio.create_task(door.answer("hello"))
    await door.until(num_waiting=1)

    await worker.say_serving(True)

    assert len(await answer) == 3


async def test_a_request_without_targets_has_its_tasks(neighbourhood: Neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker())
    slos = {"chat": {"ttft_seconds": 0.5, "tpot_seconds": 0.25}}
    door = await neighbourhood.start_scheduler(task_slos=slos)

    await door.answer("hello", task="chat")
    await door.answer("hello", task="chat", slo=generation_pb2.Slo(ttft_seconds=2))
    await door.answer("hello", task="math")

    first, second, third = (request.slo for request in worker.requests)
    assert (first.ttft_seconds, first.tpot_seconds) == (0.5, 0.25)
    assert (second.ttft_seconds, second.tpot_seconds) == (2, 0.25)
    assert not third.ListFields()


async def test_a_tasks_target_decides_who_is_due_first(neighbourhood: Neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker(num_sequences=1, stepwise=True))
    door = await neighbourhood.start_scheduler(policy="edf", task_slos={"urgent": {"ttft_seconds": 0.1}})
    calls = [asyncio.create_task(door.answer(prompt, task=task)) for prompt, task in [("running", "chat")]]
    await worker.started.acquire()
    for num_waiting, (prompt, task) in enumerate([("patient", "chat"), ("pressing", "urgent")], start=1):
        calls.append(asyncio.create_task(door.answer(prompt, task=task)))
        await door.until(num_waiting=num_waiting)

    worker.step(9)

    await asyncio.gather(*calls)
    assert worker.prompts == ["running", "pressing", "patient"]
