"""`emoe bench serve` as a user runs it: what it prints, Ctrl-C, and its errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from scheduler_neighbours import PATIENCE_SECONDS, Neighbourhood, ScriptedWorker

COMMAND = (sys.executable, "-m", "emoe.cli.main", "bench", "serve")
NUM_WORDS = 3


@pytest.fixture
async def neighbourhood() -> AsyncIterator[Neighbourhood]:
    async with contextlib.AsyncExitStack() as stack:
        yield Neighbourhood(stack)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rows = [f"{number / 20},{('qa', 'code')[number % 2]},7,{NUM_WORDS}" for number in range(6)]
    path = tmp_path / "six.csv"
    path.write_text("\n".join(["arrival_s,task,prompt_tokens,output_tokens", *rows]) + "\n")
    return path


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str, str]:
    async with asyncio.timeout(2 * PATIENCE_SECONDS):
        out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_a_replay_prints_a_row_of_all_and_of_each_task(neighbourhood, trace: Path, tmp_path: Path) -> None:
    await neighbourhood.start_worker(ScriptedWorker(num_sequences=4))
    door = await neighbourhood.start_scheduler()
    report = tmp_path / "report.json"
    process = await start(f"--trace={trace}", f"--target={door.host.address}", f"--json={report}", "--slo-scale=50")

    code, out, err = await ended(process)

    assert (code, out.count("100.0%")) == (0, 3), (out, err)
    assert "6 of 6 sent, 0 running, 6 done, 100.0% in time" in err
    found = json.loads(report.read_text())
    assert [(row["task"], row["num_requests"], row["workers"]) for row in found["rows"]] == [
        ("all", 6, 1),
        ("code", 3, 1),
        ("qa", 3, 1),
    ]
    (replay,) = found["replays"]
    assert replay["requests"]["answer_tokens"] == [NUM_WORDS] * 6
    assert all(end is not None for end in replay["requests"]["end_seconds"])


async def test_ctrl_c_prints_what_was_done(neighbourhood, trace: Path) -> None:
    worker = await neighbourhood.start_worker(ScriptedWorker(num_sequences=1, stepwise=True))
    door = await neighbourhood.start_scheduler()
    process = await start(f"--trace={trace}", f"--target={door.host.address}", "--json=-")
    async with asyncio.timeout(PATIENCE_SECONDS):
        worker.step(2 * NUM_WORDS)
        for _ in range(3):
            await worker.started.acquire()  # the third runs, so the first was answered long ago

    await door.until(num_running=1, num_waiting=3)
    process.send_signal(signal.SIGINT)
    code, out, err = await ended(process)

    assert code == 0, err
    found = json.loads(out)
    assert found["rows"][0]["num_requests"] in (1, 2)
    assert found["replays"][0]["requests"]["end_seconds"][2:] == [None] * 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("arrival_s,prompt_tokens\n1,2\n", "has no column output_tokens", id="column"),
        pytest.param("arrival_s,prompt_tokens,output_tokens\n1,2,0\n", "line 2", id="no answer"),
    ],
)
async def test_a_trace_that_cannot_be_sent_is_refused_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.csv"
    path.write_text(text)
    code, _, err = await ended(await start(f"--trace={path}", "--target=127.0.0.1:1"))
    assert (code, err.count("\n")) == (1, 1)
    assert message in err


async def test_nothing_that_answers_is_said_at_once(trace: Path) -> None:
    code, _, err = await ended(await start(f"--trace={trace}", "--target=127.0.0.1:1"))
    assert (code, err.count("\n")) == (1, 1)
    assert "nothing that speaks gRPC can be reached" in err


async def test_comparing_needs_the_system_that_runs_here(neighbourhood, trace: Path) -> None:
    await neighbourhood.start_worker(ScriptedWorker())
    door = await neighbourhood.start_scheduler()
    code, _, err = await ended(await start(f"--trace={trace}", f"--target={door.host.address}", "--compare"))
    assert code == 1
    assert "--compare needs the emoe up that runs here" in err
