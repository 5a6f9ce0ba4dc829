"""`emoe generate` against a real SchedulerService: what it sends, prints and returns."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from cli_scheduler_stand_in import FIRST, SchedulerStandIn, scheduling

from emoe.cli.runfile import write_up_file
from emoe.core.errors import EmoeError, InvalidRequestError, NotReadyError, QueueFullError

WAIT_SECONDS = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    status: int
    stdout: str
    stderr: str


async def emoe_generate(*arguments: str, stdin: str = "", state_dir: Path | None = None) -> Outcome:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EMOE_")}
    environment["EMOE_STATE_DIR"] = str(state_dir or "/nonexistent")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "emoe.cli.main", "generate", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    async with asyncio.timeout(WAIT_SECONDS):
        stdout, stderr = await process.communicate(stdin.encode())
    return Outcome(status=process.returncode or 0, stdout=stdout.decode(), stderr=stderr.decode())


async def test_the_answer_goes_to_stdout_and_its_figures_to_stderr() -> None:
    async with scheduling(SchedulerStandIn()) as address:
        outcome = await emoe_generate("Hello", "--address", address)
    assert (outcome.status, outcome.stdout) == (0, "Good day.\n")
    assert outcome.stderr.startswith("task code, TTFT 0.")
    assert "hit rate 75.0%, 4 prompt and 3 answer tokens, ended by stop" in outcome.stderr


async def test_json_is_one_object_with_everything() -> None:
    async with scheduling(SchedulerStandIn()) as address:
        outcome = await emoe_generate("Hello", "--address", address, "--json")
    answer = json.loads(outcome.stdout)
    assert (answer["text"], answer["finish_reason"], answer["hit_rate"]) == ("Good day.", "stop", 0.75)
    assert (answer["worker_id"], answer["request_id"], answer["queue_seconds"]) == ("w1", "r1", 0.25)
    assert outcome.stderr == ""


async def test_options_reach_the_scheduler_as_they_were_given() -> None:
    scheduler = SchedulerStandIn()
    options = ["--task=code", "--max-tokens=9", "--temperature=0.5", "--top-p=0.9", "--top-k=7", "--seed=3"]
    options += ["--stop=A", "--stop=B"]
    async with scheduling(scheduler) as address:
        await emoe_generate("Hello", "--address", address, *options)
    [request] = scheduler.requests
    sampling = request.sampling
    assert (request.text, request.task, request.raw) == ("Hello", "code", False)
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (9, 0.5, 0.9, 7)
    assert (sampling.seed, list(sampling.stop)) == (3, ["A", "B"])


async def test_chat_and_raw_choose_the_form_of_the_prompt() -> None:
    scheduler = SchedulerStandIn()
    async with scheduling(scheduler) as address:
        await emoe_generate("Hello", "--address", address, "--chat")
        await emoe_generate("-", "--address", address, "--raw", stdin="from a pipe")
    chat, raw = scheduler.requests
    assert [(message.role, message.content) for message in chat.chat.messages] == [("user", "Hello")]
    assert (raw.text, raw.raw) == ("from a pipe", True)


@pytest.mark.parametrize(
    ("failure", "line"),
    [
        (InvalidRequestError("no such task"), "emoe: INVALID_ARGUMENT: no such task\n"),
        (NotReadyError("the worker left"), "emoe: UNAVAILABLE: the worker left\n"),
        (
            QueueFullError("the queue is full", retry_after_seconds=1.5),
            "emoe: RESOURCE_EXHAUSTED: the queue is full (try again in 1.5 s)\n",
        ),
    ],
    ids=["invalid", "unavailable", "full"],
)
async def test_a_refusal_is_one_line_and_status_1(failure: EmoeError, line: str) -> None:
    async with scheduling(SchedulerStandIn(answer=(), failure=failure)) as address:
        outcome = await emoe_generate("Hello", "--address", address)
    assert (outcome.status, outcome.stdout, outcome.stderr) == (1, "", line)


async def test_a_refusal_as_json_carries_the_retry_delay() -> None:
    failure = QueueFullError("the queue is full", retry_after_seconds=1.5)
    async with scheduling(SchedulerStandIn(answer=(), failure=failure)) as address:
        outcome = await emoe_generate("Hello", "--address", address, "--json")
    error = json.loads(outcome.stdout)["error"]
    assert (outcome.status, error["code"], error["retry_after_seconds"]) == (1, "RESOURCE_EXHAUSTED", 1.5)


async def test_a_failure_in_mid_answer_starts_a_line_of_its_own() -> None:
    async with scheduling(SchedulerStandIn(answer=(FIRST,), failure=NotReadyError("the worker died"))) as address:
        outcome = await emoe_generate("Hello", "--address", address)
    assert (outcome.status, outcome.stdout) == (1, "Good \n")
    assert outcome.stderr == "emoe: UNAVAILABLE: the worker died\n"


async def test_an_answer_without_an_end_is_not_taken_for_whole() -> None:
    async with scheduling(SchedulerStandIn(answer=(FIRST,))) as address:
        outcome = await emoe_generate("Hello", "--address", address)
    assert outcome.status == 1
    assert "ended without a finish reason" in outcome.stderr


async def test_a_bad_option_is_refused_before_anything_is_sent() -> None:
    outcome = await emoe_generate("Hello", "--address", "127.0.0.1:1", "--top-p", "2")
    assert (outcome.status, outcome.stderr) == (1, "emoe: sampling.top_p must lie in (0, 1], not 2.0\n")


async def test_ctrl_c_leaves_and_ends_the_generation() -> None:
    scheduler = SchedulerStandIn(answer=(FIRST,), hangs=True)
    async with scheduling(scheduler) as address:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "emoe.cli.main", "generate", "Hello", "--address", address),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        async with asyncio.timeout(WAIT_SECONDS):
            assert await process.stdout.read(5) == b"Good "
            process.send_signal(signal.SIGINT)
            _, stderr = await process.communicate()
            await scheduler.cancelled.wait()
    assert process.returncode == 130
    assert b"Traceback" not in stderr


async def test_an_answer_that_takes_too_long_is_given_up() -> None:
    async with scheduling(SchedulerStandIn(answer=(FIRST,), hangs=True)) as address:
        outcome = await emoe_generate("Hello", "--address", address, "--timeout", "1")
    assert outcome.status == 1
    assert outcome.stderr.startswith("emoe: DEADLINE_EXCEEDED: ")


async def test_the_running_system_is_found_by_its_file(tmp_path: Path) -> None:
    async with scheduling(SchedulerStandIn()) as address:
        write_up_file(tmp_path, model="m", scheduler=address, loader="")
        outcome = await emoe_generate("Hello", state_dir=tmp_path)
    assert (outcome.status, outcome.stdout) == (0, "Good day.\n")


async def test_without_a_running_system_the_way_out_is_named() -> None:
    outcome = await emoe_generate("Hello")
    assert outcome.status == 1
    assert outcome.stderr.startswith("emoe: no emoe up runs here: start one, or name a scheduler with --target")
