"""`emoe demo`: what counts as passed, and the run itself over real services."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from cli_models import save_small_model

from emoe.cli.demo import DemoRow, demo, find_fault
from emoe.cli.demo_prompts import DEMO_PROMPTS, TaskPrompt
from emoe.cli.demo_run import one_a_task
from emoe.cli.demo_table import describe_demo, print_demo
from emoe.cli.generation_client import Answer
from emoe.cli.supervisor import ChildEvent, ChildState
from emoe.cli.system import SERVICES, SystemOptions
from emoe.core.generation import FinishReason, Usage
from emoe.core.tasks import BUILTIN_TASKS

PROMPTS = [TaskPrompt(task="qa", prompt="Who?", max_tokens=6), TaskPrompt(task="code", prompt="def f", max_tokens=6)]
ANSWER = Answer(
    text="Nobody.",
    finish_reason=FinishReason.STOP,
    usage=Usage(num_prompt_tokens=4, num_completion_tokens=11, num_expert_hits=6, num_expert_choices=8),
    request_id="r",
    task="qa",
    worker_id="w",
    queue_seconds=0.0,
    ttft_seconds=0.05,
    total_seconds=0.30,
)
PASSED = DemoRow(task="qa", prompt="Who?", answer=ANSWER, num_resident=6, num_experts=24)
FAILED = DemoRow(task="code", prompt="def f", failure="UNAVAILABLE: no worker")


@pytest.mark.timeout(240)
async def test_prompts_are_answered_with_a_part_of_the_experts(tmp_path: Path) -> None:
    events: list[ChildEvent] = []
    options = SystemOptions(
        model=save_small_model(tmp_path / "model"),
        state_dir=tmp_path / "state",
        listen="127.0.0.1:0",
        worker={"max-context": "64", "expert-memory": "50%"},
    )
    rows = await demo(options, PROMPTS, on_event=events.append, on_row=lambda _row: None)
    assert [(row.task, row.failure) for row in rows] == [("qa", ""), ("code", "")]
    assert all(row.num_resident is not None and row.num_resident < (row.num_experts or 0) == 24 for row in rows)
    assert {event.name for event in events if event.state is ChildState.STOPPED} == set(SERVICES)


@pytest.mark.parametrize(
    ("text", "num_slots", "num_experts", "fault"),
    [
        ("yes", 6, 24, ""),
        (" ", 6, 24, "the answer is empty"),
        ("yes", 24, 24, "the worker has 24 slots for 24 experts: nothing was paged"),
        ("yes", 6, None, "the worker has 6 slots for None experts: nothing was paged"),
    ],
    ids=["paged", "empty", "all resident", "unknown model"],
)
def test_only_a_whole_answer_of_a_paged_model_counts(
    text: str, num_slots: int, num_experts: int | None, fault: str
) -> None:
    assert find_fault(dataclasses.replace(ANSWER, text=text), num_slots, num_experts) == fault


def test_each_task_is_asked_once() -> None:
    assert sorted(prompt.task for prompt in one_a_task(DEMO_PROMPTS)) == sorted(BUILTIN_TASKS)


def test_json_says_whether_all_passed() -> None:
    report = json.loads(json.dumps(describe_demo([PASSED, FAILED], model="m", total_seconds=1.5)))
    assert (report["passed"], [row["passed"] for row in report["rows"]]) == (False, [True, False])
    assert (report["rows"][0]["answer"]["text"], report["rows"][0]["num_resident"]) == ("Nobody.", 6)
    assert describe_demo([PASSED], model="m", total_seconds=1.5)["passed"] is True


@pytest.mark.parametrize("figure", ["Nobody.", "50 ms", "40", "75.0%", "6/24", "[UNAVAILABLE: no worker]"])
def test_the_table_shows_each_figure(figure: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_demo([PASSED, FAILED])
    assert figure in capsys.readouterr().out


def test_no_rate_is_told_of_too_few_tokens() -> None:
    few = dataclasses.replace(ANSWER, usage=dataclasses.replace(ANSWER.usage, num_completion_tokens=3))
    assert ANSWER.decode_tokens_per_second == pytest.approx(40)
    assert few.decode_tokens_per_second is None
