"""The front door's settings: what a task may be promised."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

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
