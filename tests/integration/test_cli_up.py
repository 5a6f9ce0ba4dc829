"""`emoe up` as a user has it: four real services over a small random model, one question, and the end of it."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import sys
from pathlib import Path

import pytest
from cli_models import save_small_model
from support.up import running_up

from emoe.cli.system import SERVICES

END_SECONDS = 30.0

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("model"))


async def command(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "emoe.cli.main", *arguments), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(END_SECONDS):
        stdout, _ = await process.communicate()
    assert process.returncode == 0, stdout
    return stdout.decode()


def have_ended(pidfds: list[int]) -> bool:
    """Whether the processes end within the time that a test may take."""
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    waiting = set(pidfds)
    while waiting and (ended := poll.poll(END_SECONDS * 1000)):
        for pidfd, _ in ended:
            poll.unregister(pidfd)
            waiting.discard(pidfd)
    return not waiting


async def test_a_question_is_answered_by_a_part_of_the_experts_and_ctrl_c_ends_all(model: Path, tmp_path: Path) -> None:
    async with running_up(model, tmp_path, "--expert-memory=50%") as up:
        await up.until(event="ready")
        answer = json.loads(
            await command("generate", "Hello", "--max-tokens=8", "--json", f"--state-dir={tmp_path}", "--task=qa")
        )
        assert (answer["task"], answer["num_completion_tokens"] > 0) == ("qa", True)
        status = await up.until(event="status")
        while not status["workers"] or status["workers"][0]["counters"]["num_prompt_tokens"] == 0:
            status = await up.until(event="status")
        assert status["workers"][0]["num_slots"] < status["num_experts"] == 24
        pidfds = [os.pidfd_open(up.pid_of(tmp_path, service)) for service in SERVICES]
        up.process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(up.process.wait(), END_SECONDS) == 0
        assert have_ended(pidfds)
        assert not (tmp_path / "up.json").exists()


async def test_a_killed_loader_comes_back_where_it_was_and_a_killed_parent_ends_all(
    model: Path, tmp_path: Path
) -> None:
    async with running_up(model, tmp_path) as up:
        address = (await up.until(event="ready"))["loader"]
        os.kill(up.pid_of(tmp_path, "loader"), signal.SIGKILL)
        await up.until(event="service", name="loader", state="restarting")
        await up.until(event="service", name="loader", state="ready")
        announced = json.loads((tmp_path / "announce" / "loader.json").read_text())
        assert announced["address"] == address
        pidfds = [os.pidfd_open(up.pid_of(tmp_path, service)) for service in SERVICES]
        up.process.kill()
        assert have_ended(pidfds)


async def test_a_model_that_cannot_be_served_is_named_and_ends_the_command(model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "jamba"}')
    async with running_up(broken, tmp_path / "state") as up:
        error = await up.until(event="error")
        assert await asyncio.wait_for(up.process.wait(), END_SECONDS) == 1
    assert "jamba" in error["error"]["message"]
