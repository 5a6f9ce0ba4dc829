"""The load generator against a real scheduler: figures, refusals, failures, and a server that stalls."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator

import pytest
from scheduler_neighbours import PATIENCE_SECONDS, FrontDoor, Neighbourhood, ScriptedWorker

from emoe.bench.schedule_trace import Workload
from emoe.bench.serve import OpenLoad, ServeOutcome
from emoe.bench.serve_load import Load
from emoe.bench.serve_rows import Labels, count_failures, summarise
from emoe.core.errors import GenerationError
from emoe.core.slo import Slo

NUM_WORDS = 3
"""Of each answer of a scripted worker."""
LABELS = Labels(policy="fifo", workers=1, slo_scale=1.0)
LAX = {"unknown": Slo(ttft_seconds=60.0)}


@pytest.fixture
async def neighbourhood() -> AsyncIterator[Neighbourhood]:
    async with contextlib.AsyncExitStack() as stack:
        yield Neighbourhood(stack)


def workload(*arrived: float, answer_tokens: int = NUM_WORDS, task: str = "qa") -> Workload:
    num = len(arrived)
    return Workload(
        name="test",
        arrived_seconds=list(arrived),
        prompt_tokens=[5] * num,
        answer_tokens=[answer_tokens] * num,
        tasks=[task] * num,
        span_seconds=max(arrived) or 1.0,
    )


def load_on(door: FrontDoor, wanted: Workload, *, slos=LAX, timeout_seconds: float = PATIENCE_SECONDS) -> OpenLoad:
    write = Load(workload=wanted, vocab_size=100).write_prompt
    return OpenLoad(door.channel, wanted, slos, write, timeout_seconds=timeout_seconds)


async def replay(door: FrontDoor, wanted: Workload, **options) -> ServeOutcome:
    opened = load_on(door, wanted, **options)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await opened.run()
    return opened.outcome


async def test_every_request_ends_once_and_is_told_with_its_tasks_targets(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker(num_sequences=4))
    door = await neighbourhood.start_scheduler()
    wanted = workload(*(0.002 * number for number in range(20)))
    slos = {"qa": Slo(ttft_seconds=30.0, tpot_seconds=20.0)}

    outcome = await replay(door, wanted, slos=slos)

    (row,) = summarise(wanted, outcome, slos, LABELS)
    assert (row.num_requests, row.num_refused, row.num_failed, row.attainment) == (20, 0, 0, 1.0)
    assert row.goodput_rps == pytest.approx(20 / wanted.span_seconds)
    assert outcome.num_messages == 20 * NUM_WORDS
    for arrived, sent, first, end in zip(
        wanted.arrived_seconds, outcome.sent_seconds, outcome.first_token_seconds, outcome.end_seconds, strict=True
    ):
        assert arrived <= sent <= first <= end
    received = worker.requests[0]
    assert (received.slo.ttft_seconds, received.slo.tpot_seconds) == (30.0, 20.0)
    assert (received.sampling.ignore_eos, received.sampling.max_tokens) == (True, NUM_WORDS)
    assert len(received.token_ids.ids) == 5
    assert max(received.token_ids.ids) < 100


async def test_latencies_of_a_stalled_server_include_all_the_waiting(neighbourhood) -> None:
    """The worker takes one at a time and stands still: requests that could not even start count their wait."""
    worker = await neighbourhood.start_worker(ScriptedWorker(num_sequences=1, stepwise=True))
    door = await neighbourhood.start_scheduler()
    wanted = workload(0.0, 0.05, 0.1, 0.15)
    opened = load_on(door, wanted)
    running = asyncio.create_task(opened.run())
    await door.until(num_running=1, num_waiting=3)
    stalled_until = opened.progress().elapsed_seconds
    assert (opened.progress().num_sent, opened.progress().num_running) == (4, 4), (
        "it sends on although none is answered"
    )

    worker.step(4 * NUM_WORDS)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await running

    for arrived, first in zip(wanted.arrived_seconds, opened.outcome.first_token_seconds, strict=True):
        assert first - arrived >= stalled_until - arrived
    (row,) = summarise(wanted, opened.outcome, {"qa": Slo(ttft_seconds=stalled_until / 1000)}, LABELS)
    assert row.attainment == 0.0


async def test_what_is_refused_is_counted_as_missed_and_apart_from_failures(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker(num_sequences=1, stepwise=True))
    door = await neighbourhood.start_scheduler(max_queued_requests=1)
    wanted = workload(0.0, 0.01, 0.02, 0.03, 0.04)
    opened = load_on(door, wanted)
    running = asyncio.create_task(opened.run())
    async with asyncio.timeout(PATIENCE_SECONDS):
        while opened.progress().num_refused < 3:
            await door.until()
        worker.step(2 * NUM_WORDS)
        await running

    (row,) = summarise(wanted, opened.outcome, LAX, LABELS)
    assert (row.num_requests, row.num_refused, row.num_failed) == (5, 3, 0)
    assert row.attainment == pytest.approx(2 / 5)
    assert count_failures(opened.outcome) == {"RESOURCE_EXHAUSTED": 3}
    assert opened.progress().attainment == pytest.approx(2 / 5)


async def test_failures_are_told_by_their_reason(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker(num_sequences=4))
    worker.error = GenerationError("the engine broke")
    door = await neighbourhood.start_scheduler()
    outcome = await replay(door, workload(0.0, 0.01))
    assert count_failures(outcome) == {"INTERNAL": 2}


async def test_an_answer_of_another_length_is_a_failure(neighbourhood) -> None:
    await neighbourhood.start_worker(ScriptedWorker(num_sequences=4))
    door = await neighbourhood.start_scheduler()
    outcome = await replay(door, workload(0.0, 0.01, answer_tokens=NUM_WORDS + 1))
    assert count_failures(outcome) == {"WRONG_LENGTH": 2}


async def test_an_answer_that_never_comes_ends_at_its_deadline(neighbourhood) -> None:
    await neighbourhood.start_worker(ScriptedWorker(num_sequences=4, stepwise=True))
    door = await neighbourhood.start_scheduler()
    outcome = await replay(door, workload(0.0, 0.01), timeout_seconds=0.2)
    assert count_failures(outcome) == {"DEADLINE_EXCEEDED": 2}


async def test_what_was_stopped_tells_of_what_had_ended(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker(num_sequences=1, stepwise=True))
    door = await neighbourhood.start_scheduler()
    wanted = workload(0.0, 0.01, 3600.0)
    opened = load_on(door, wanted)
    running = asyncio.create_task(opened.run())
    worker.step(NUM_WORDS)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while opened.progress().num_done < 1:
            await door.until()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running

    (row,) = summarise(wanted, opened.outcome, LAX, LABELS)
    assert (row.num_requests, row.attainment) == (1, 1.0)
    assert opened.progress().num_running == 0


async def test_rows_tell_each_task_apart(neighbourhood) -> None:
    await neighbourhood.start_worker(ScriptedWorker(num_sequences=4))
    door = await neighbourhood.start_scheduler()
    wanted = dataclasses.replace(workload(0.0, 0.01, 0.02), tasks=["qa", "code", "qa"])
    rows = summarise(wanted, await replay(door, wanted), LAX, LABELS)
    assert [(row.task, row.num_requests) for row in rows] == [("all", 3), ("code", 1), ("qa", 2)]
