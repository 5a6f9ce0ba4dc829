"""The front door learns mean answer lengths from the loader's profile, and does not need it."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest
from scheduler_neighbours import PATIENCE_SECONDS, FrontDoor, Neighbourhood, ScriptedWorker
from support.profiles import leaning, profile, task_profile

from emoe.store.profile import render_profile
from emoe.v1 import loader_pb2

SHAPE = (2, 32)
QA = task_profile(leaning(SHAPE, (0, 1), 1), answer_tokens=40.0)
PROFILE = render_profile(profile({"qa": QA}, shape=SHAPE, moe_layers=(0, 1)))


@pytest.fixture
async def neighbourhood():
    async with contextlib.AsyncExitStack() as stack:
        neighbourhood = Neighbourhood(stack)
        await neighbourhood.start_loader()
        yield neighbourhood


async def asked(neighbourhood: Neighbourhood) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        await neighbourhood.loader.profile_asked.acquire()


async def loads_of(neighbourhood: Neighbourhood, *tasks: str) -> list[loader_pb2.TaskLoad]:
    """Of the first report that has them all."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            report = await neighbourhood.loader.reports.get()
            loads = {load.task: load for load in report.loads}
            if loads.keys() >= set(tasks):
                return [loads[task] for task in tasks]


async def told(door: FrontDoor, caplog: pytest.LogCaptureFixture, text: str) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while text not in caplog.text:
            await door.until()


async def test_load_reports_expect_the_profiles_answers(neighbourhood, caplog: pytest.LogCaptureFixture) -> None:
    neighbourhood.loader.profile = PROFILE
    with caplog.at_level(logging.INFO):
        door = await neighbourhood.start_scheduler()
        await told(door, caplog, "answer lengths of 1 tasks begin from the model's profile")
    waiting = [door.generate("x" * 40, task=task, sampling={"max_tokens": 200}) for task in ("qa", "code")]
    loads = await loads_of(neighbourhood, "qa", "code")
    assert [load.num_expected_tokens for load in loads] == [40, 100]
    assert [load.num_waiting_tokens for load in loads] == [50, 110]
    for call in waiting:
        call.cancel()


async def test_it_asks_once_a_connection_however_often_the_list_changes(neighbourhood) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker())
    door = await neighbourhood.start_scheduler()
    await asked(neighbourhood)
    await neighbourhood.start_worker(ScriptedWorker("another"))
    await door.until(num_workers=2)
    assert neighbourhood.loader.profile_asked.locked()
    await neighbourhood.stop_loader()
    await neighbourhood.start_loader()
    await neighbourhood.relist()
    await asked(neighbourhood)
    assert worker.prompts == []


@pytest.mark.parametrize("raw", [b"torn", PROFILE.replace(b"profile 1", b"profile 9")], ids=["torn", "another format"])
async def test_a_profile_that_cannot_be_used_is_logged_and_requests_are_answered(
    neighbourhood, raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    neighbourhood.loader.profile = raw
    await neighbourhood.start_worker(ScriptedWorker())
    door: FrontDoor = await neighbourhood.start_scheduler()
    await told(door, caplog, "the loader's profile cannot be used")
    assert len(await door.answer("hello", task="qa")) == 3


async def test_a_loader_that_never_gives_it_holds_up_nothing(neighbourhood) -> None:
    neighbourhood.loader.gives_profile = False
    await neighbourhood.start_worker(ScriptedWorker())
    door = await neighbourhood.start_scheduler()
    await asked(neighbourhood)
    assert len(await door.answer("hello", task="qa")) == 3
