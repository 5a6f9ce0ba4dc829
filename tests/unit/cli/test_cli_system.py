"""What the services' processes are called and given, before any of them runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from emoe.cli import system
from emoe.cli.commands import app
from emoe.cli.system import log_path, prepare_state_dir, worker_names


def test_one_worker_is_called_worker_and_several_by_number() -> None:
    assert worker_names(1) == ("worker",)
    assert worker_names(3) == ("worker-0", "worker-1", "worker-2")


@pytest.mark.parametrize(
    ("num_cpus", "num_workers", "threads"),
    [(8, 1, {}), (8, 2, {"threads": "4"}), (8, 3, {"threads": "2"}), (2, 8, {"threads": "1"})],
    ids=["alone", "half each", "rounded down", "more than processors"],
)
def test_workers_share_the_processors(
    monkeypatch: pytest.MonkeyPatch, num_cpus: int, num_workers: int, threads: dict[str, str]
) -> None:
    monkeypatch.setattr(system, "usable_cpus", lambda: num_cpus)
    assert system._threads_each(num_workers) == threads


def test_logs_of_the_run_before_stay_beside_whatever_it_was_called(tmp_path: Path) -> None:
    prepare_state_dir(tmp_path)
    log_path(tmp_path, "worker-7").write_text("before")
    prepare_state_dir(tmp_path)
    assert not log_path(tmp_path, "worker-7").exists()
    assert (tmp_path / "logs" / "worker-7.log.1").read_text() == "before"


def test_several_workers_that_would_each_take_what_is_left_are_refused() -> None:
    result = CliRunner().invoke(app, ["up", "--workers", "2", "--expert-memory", "auto"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "write a share (25%) or a size" in result.output
