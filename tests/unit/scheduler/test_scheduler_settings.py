"""The front door's settings: what a task may be promised."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from emoe.cli.failures import CommandError
from emoe.cli.serve import parse_settings
from emoe.core.slo import Slo
from emoe.scheduler.settings import SchedulerSettings


def test_targets_of_tasks_come_from_the_environment_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMOE_SCHEDULER_TASK_SLOS", '{"triage": {"ttft_seconds": 0.5}}')
    settings = parse_settings("scheduler", SchedulerSettings, ["--loader=l:1"])
    assert isinstance(settings, SchedulerSettings)
    assert settings.fill_slo("triage", Slo(tpot_seconds=1)) == Slo(ttft_seconds=0.5, tpot_seconds=1)
    assert settings.fill_slo("chat", Slo()) == Slo()
    assert "triage" in settings.tasks


@pytest.mark.parametrize(
    "slos",
    [
        pytest.param({"no/task": {}}, id="name"),
        pytest.param({"chat": {"ttft_seconds": 0}}, id="zero"),
        pytest.param({"chat": {"ttft_seconds": float("inf")}}, id="endless"),
        pytest.param({"chat": {"ttft": 1}}, id="unknown-target"),
    ],
)
def test_targets_that_cannot_be_are_refused(slos: dict[str, dict[str, float]]) -> None:
    with pytest.raises(ValidationError):
        SchedulerSettings(loader="l:1", task_slos=slos)  # type: ignore[arg-type]


def test_examples_of_tasks_come_as_json_and_their_names_are_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMOE_SCHEDULER_TASK_EXAMPLES", '{"tickets": ["Which team? The lift is stuck."]}')
    settings = parse_settings("scheduler", SchedulerSettings, ["--loader=l:1", "--identify-tasks"])
    assert isinstance(settings, SchedulerSettings)
    assert settings.all_task_examples == {"tickets": ("Which team? The lift is stuck.",)}
    assert "tickets" in settings.tasks


def test_a_settings_examples_go_before_the_files(tmp_path: Path) -> None:
    file = tmp_path / "tasks.json"
    file.write_text('{"a": ["of the file"], "b": ["of the file"]}')
    settings = SchedulerSettings(loader="l:1", tasks_file=file, task_examples={"b": ("of the setting",)})
    assert settings.all_task_examples == {"a": ("of the file",), "b": ("of the setting",)}


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        pytest.param('{"No": ["x"]}', r"EMOE_SCHEDULER_TASK_EXAMPLES: task name 'No' must match", id="name"),
        pytest.param('{"unknown": ["x"]}', "EMOE_SCHEDULER_TASK_EXAMPLES: unknown is what", id="unknown"),
        pytest.param('{"a": ["x", ""]}', r"EXAMPLES: examples\[1\] of task 'a' is empty", id="blank"),
        pytest.param('{"a": "x"}', r"EMOE_SCHEDULER_TASK_EXAMPLES\.a: Input should be", id="no list"),
        pytest.param('{"a": [', "EMOE_SCHEDULER_TASK_EXAMPLES: must be JSON", id="no JSON"),
    ],
)
def test_examples_that_cannot_be_are_refused_by_the_variables_name(
    value: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMOE_SCHEDULER_TASK_EXAMPLES", value)
    with pytest.raises(CommandError, match=complaint):
        parse_settings("scheduler", SchedulerSettings, ["--loader=l:1"])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        pytest.param('{"a": []}', "tasks.json: task 'a' has 0 examples", id="none"),
        pytest.param('["a"]', "tasks.json: the whole: Input should be a valid dict", id="list"),
        pytest.param('{"a": [3]}', r"tasks.json: a\.0: Input should be a valid string", id="number"),
        pytest.param("{", "tasks.json: Expecting", id="no JSON"),
        pytest.param(None, "tasks.json: cannot be read", id="no file"),
    ],
)
def test_a_file_of_tasks_that_cannot_be_is_refused_by_its_name(
    text: str | None, complaint: str, tmp_path: Path
) -> None:
    file = tmp_path / "tasks.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(CommandError, match=rf"--tasks-file: .*{complaint}"):
        parse_settings("scheduler", SchedulerSettings, ["--loader=l:1", f"--tasks-file={file}"])


def test_every_target_that_a_request_does_not_give_is_its_tasks() -> None:
    targets = {"ttft_seconds": 1.0, "tpot_seconds": 0.1, "end_to_end_seconds": 9.0}
    settings = SchedulerSettings(loader="l:1", task_slos={"chat": targets})  # type: ignore[dict-item]
    assert settings.fill_slo("chat", Slo(ttft_seconds=0.5)) == Slo(**{**targets, "ttft_seconds": 0.5})


@pytest.mark.parametrize(
    ("field", "value"), [pytest.param("policy", "lifo", id="policy"), pytest.param("placement", "best", id="placement")]
)
def test_an_unknown_policy_or_placement_is_refused_with_those_there_are(field: str, value: str) -> None:
    with pytest.raises(ValidationError, match=rf"no .*{field} '{value}'; there are \w+"):
        SchedulerSettings(loader="l:1", **{field: value})  # type: ignore[arg-type]
