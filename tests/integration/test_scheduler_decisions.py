"""Why this worker, why refused: the record of a scheduler that serves, as its clients, its traces and the command
see it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from scheduler_neighbours import PATIENCE_SECONDS, FrontDoor, Neighbourhood, ScriptedWorker

from emoe.core.errors import GenerationError
from emoe.runtime.errors import retry_after_seconds
from emoe.runtime.telemetry import Telemetry
from emoe.v1 import loader_pb2, scheduler_pb2
from emoe.v1.scheduler_pb2 import DecisionKind


@pytest.fixture
async def neighbourhood() -> AsyncIterator[Neighbourhood]:
    async with contextlib.AsyncExitStack() as stack:
        yield Neighbourhood(stack)


async def decisions(door: FrontDoor, **only: object) -> list[scheduler_pb2.Decision]:
    """Newest first."""
    request = scheduler_pb2.ListDecisionsRequest(**only)
    return list((await door.stub.ListDecisions(request, timeout=PATIENCE_SECONDS)).decisions)


def kinds(listed: list[scheduler_pb2.Decision]) -> list[str]:
    return [DecisionKind.Name(one.kind).removeprefix("DECISION_KIND_") for one in listed]


async def test_an_answered_request_was_admitted_and_done(neighbourhood) -> None:
    await neighbourhood.start_worker(ScriptedWorker("w-7"))
    door = await neighbourhood.start_scheduler(task_slos={"qa": {"ttft_seconds": 2.5}})
    began = time.time()
    await door.answer("hello", task="qa", tenant="blue", request_id="mine")

    done, admitted = await decisions(door)

    assert kinds([admitted, done]) == ["ADMITTED", "DONE"]
    assert (admitted.request_id, admitted.task, admitted.tenant, admitted.worker_id) == ("mine", "qa", "blue", "w-7")
    assert admitted.due_seconds == pytest.approx(2.5)
    assert admitted.predicted_ttft_seconds > 0
    assert admitted.reason
    assert admitted.num_workers == 1
    assert began - 1 <= admitted.unix_seconds <= done.unix_seconds <= time.time() + 1
    assert done.age_seconds >= admitted.age_seconds


async def test_a_request_that_cannot_be_in_time_was_deferred_before_it_ran(neighbourhood) -> None:
    await neighbourhood.start_worker(ScriptedWorker("w-7"))
    door = await neighbourhood.start_scheduler(policy="ontime")
    await door.answer("hello", task="qa", tenant="blue", slo={"ttft_seconds": 0.001})

    (deferred,) = await decisions(door, kind=DecisionKind.DECISION_KIND_DEFERRED)

    assert kinds(await decisions(door))[::-1] == ["DEFERRED", "ADMITTED", "DONE"]
    assert (deferred.task, deferred.tenant, deferred.worker_id) == ("qa", "blue", "")
    assert deferred.reason.startswith("late")
    assert deferred.num_waiting == 1


async def test_a_list_is_narrowed_and_bounded(neighbourhood) -> None:
    await neighbourhood.start_worker(ScriptedWorker("w-7"))
    door = await neighbourhood.start_scheduler(max_decisions=5)
    for task in ("qa", "code", "qa"):
        await door.answer("hello", task=task)

    assert len(await decisions(door)) == 5
    assert {one.task for one in await decisions(door, task="code")} == {"code"}
    assert kinds(await decisions(door, kind=DecisionKind.DECISION_KIND_DONE, limit=2)) == ["DONE"] * 2
    assert await decisions(door, worker_id="w-8") == []
    assert len(await decisions(door, worker_id="w-7", task="code")) == 2


async def test_a_worker_that_dies_and_a_client_that_leaves_are_in_the_record(neighbourhood) -> None:
    doomed = await neighbourhood.start_worker(ScriptedWorker("doomed", num_sequences=9, stepwise=True))
    door = await neighbourhood.start_scheduler()
    call = door.generate("hello", request_id="mine")
    await doomed.started.acquire()
    second = await neighbourhood.start_worker(ScriptedWorker("second", stepwise=True))
    await door.until(num_workers=2)
    await doomed.server.stop(None)
    await second.started.acquire()
    call.cancel()
    await door.until(num_running=0)

    listed = (await decisions(door, request_id="mine"))[::-1]

    assert kinds(listed) == ["ADMITTED", "REQUEUED", "ADMITTED", "CANCELLED"]
    assert [one.worker_id for one in listed] == ["doomed", "doomed", "second", "second"]
    assert "doomed is unavailable" in listed[1].reason


async def test_a_request_that_expires_in_the_queue_leaves_it_and_says_so(neighbourhood) -> None:
    door = await neighbourhood.start_scheduler()
    with pytest.raises(grpc.aio.AioRpcError):
        [_ async for _ in door.generate("hello", timeout=0.05)]
    await door.until(num_waiting=0)
    (ended,) = await decisions(door)
    assert kinds([ended])[0] in {"EXPIRED", "CANCELLED"}, "the client's own clock may be the first to ring"


async def test_a_failed_request_says_why(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker())
    worker.error = GenerationError("the sampler met a NaN")
    door = await neighbourhood.start_scheduler()
    with pytest.raises(grpc.aio.AioRpcError):
        await door.answer("hello")
    (failed,) = await decisions(door, kind=DecisionKind.DECISION_KIND_FAILED)
    assert failed.reason == "INTERNAL: the sampler met a NaN"


async def test_at_a_full_queue_the_greedy_tenant_gives_way_and_status_counts_it(neighbourhood) -> None:
    door = await neighbourhood.start_scheduler(max_queued_requests=2)
    greedy = []
    for index in range(2):
        greedy.append(asyncio.create_task(door.answer("hello", tenant="greedy", request_id=f"greedy {index}")))
        await door.until(num_waiting=index + 1)
    modest = door.generate("hello", tenant="modest")

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await greedy[1]

    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert retry_after_seconds(refused.value) == 1.0
    (decision,) = await decisions(door, kind=DecisionKind.DECISION_KIND_REFUSED)
    assert (decision.request_id, decision.tenant) == ("greedy 1", "greedy")
    await door.until(num_waiting=2, num_refused=1, num_admitted=0)
    status = await door.stub.GetStatus(scheduler_pb2.GetSchedulerStatusRequest())
    assert status.policy == "ontime"
    modest.cancel()
    greedy[0].cancel()


async def test_the_span_of_a_request_says_why_it_went_where_it_went(neighbourhood) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    await neighbourhood.start_worker(ScriptedWorker("w-7"))
    door = await neighbourhood.start_scheduler(telemetry=Telemetry(provider), policy="edf")

    await door.answer("hello", task="qa", tenant="blue", slo={"ttft_seconds": 3.0})

    said = [dict(span.attributes or {}) for span in spans.get_finished_spans()]
    (attributes,) = [one for one in said if "emoe.reason" in one]
    assert (attributes["emoe.worker_id"], attributes["emoe.tenant"], attributes["emoe.policy"]) == (
        "w-7",
        "blue",
        "edf",
    )
    assert attributes["emoe.due_seconds"] == pytest.approx(3.0)
    assert attributes["emoe.predicted_ttft_seconds"] > 0
    assert (attributes["emoe.coverage"], attributes["emoe.num_waiting"]) == (0.0, 0)


async def test_coverage_and_costs_reach_the_record(neighbourhood) -> None:
    """With costs a thousand times the first guess's, so is what is foretold."""
    worker = await neighbourhood.start_worker(ScriptedWorker("w-7"))
    state = worker.state()
    state.step_costs.CopyFrom(loader_pb2.StepCosts(base_seconds=10.0, prompt_token_seconds=0.1, step_tokens=64))
    neighbourhood.loader.coverage = {"w-7": {"qa": 0.5}}
    await neighbourhood.loader.list_workers([state])
    door = await neighbourhood.start_scheduler()
    await door.answer("hello", task="qa")
    (admitted,) = await decisions(door, kind=DecisionKind.DECISION_KIND_ADMITTED)
    assert admitted.coverage == 0.5
    assert admitted.predicted_ttft_seconds > 10


async def test_the_loader_hears_what_runs_on_each_worker(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker("w-7", stepwise=True))
    door = await neighbourhood.start_scheduler()
    call = door.generate("hello", task="qa")
    await worker.started.acquire()

    async with asyncio.timeout(PATIENCE_SECONDS):
        report = await neighbourhood.loader.reports.get()
        while not report.workers:
            report = await neighbourhood.loader.reports.get()

    (tasks,) = report.workers
    assert (tasks.worker_id, [(one.task, one.num_running) for one in tasks.running]) == ("w-7", [("qa", 1)])
    assert 0.9 < tasks.recent["qa"] <= 1
    call.cancel()


async def test_the_command_prints_a_table_and_json(neighbourhood) -> None:
    await neighbourhood.start_worker(ScriptedWorker("w-7"))
    door = await neighbourhood.start_scheduler()
    await door.answer("hello", task="qa", request_id="mine")

    listed = json.loads(await emoe_decisions(door, "--task", "qa", "--kind", "admitted", "--json"))
    table = await emoe_decisions(door)

    (one,) = listed["decisions"]
    assert (one["kind"], one["request_id"], one["worker_id"]) == ("admitted", "mine", "w-7")
    assert (one["due_seconds"], listed["num_forgotten"]) == (None, 0)
    heading, done, admitted = table.splitlines()
    assert heading.split()[:5] == ["time", "kind", "request", "task", "worker"]
    assert done.split()[1:5] == ["done", "mine", "qa", "w-7"]
    assert admitted.split()[1:5] == ["admitted", "mine", "qa", "w-7"]


async def emoe_decisions(door: FrontDoor, *arguments: str) -> str:
    assert door.host is not None
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "emoe.cli.main", "decisions", "--target", door.host.address, *arguments),
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE_SECONDS):
        stdout, _ = await process.communicate()
    assert process.returncode == 0
    return stdout.decode()
