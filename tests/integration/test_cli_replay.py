"""`emoe replay` over real services and a small random model: two workers, each request counted once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_models import save_small_model
from typer.testing import CliRunner

from emoe.cli.commands import app
from emoe.cli.replay_run import STRATEGIES, ReplayOptions, Run, _runs

NUM_REQUESTS = 6
TASKS = ("qa", "code")


def write_data(folder: Path) -> Path:
    (folder / "test").mkdir(parents=True)
    for task in TASKS:
        rows = [{"id": f"{task}-{n}", "prompt": f"{task} number {n}?", "response": "Yes."} for n in range(3)]
        (folder / "test" / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_trace(path: Path) -> Path:
    lines = [f"{n / 10},{TASKS[n % 2]},{TASKS[n % 2]}-{n // 2},6" for n in range(NUM_REQUESTS)]
    path.write_text("\n".join(["arrival_s,task,corpus_id,output_tokens", *lines]) + "\n")
    return path


@pytest.mark.timeout(240)
def test_a_trace_is_replayed_through_several_workers_and_what_they_keep_between_them_is_shown(tmp_path: Path) -> None:
    model, data = save_small_model(tmp_path / "model"), write_data(tmp_path / "data")
    trace, report = write_trace(tmp_path / "trace.csv"), tmp_path / "report.json"
    options = [f"--data={data}", f"--model={model}", "--strategy=task-frequency", "--resident=50%", "--windows=2"]
    options += ["--workers=2", "--placement=residency", "--speed=1", f"--json={report}"]
    result = CliRunner().invoke(app, ["replay", str(trace), *options])
    assert result.exit_code == 0, result.output
    assert "2 residency" in result.stdout
    rows = json.loads(report.read_text())["rows"]
    everything = rows[0]
    assert (everything["num_requests"], everything["num_failed"]) == (NUM_REQUESTS, 0)
    assert (everything["num_workers"], everything["placement"]) == (2, "residency")
    assert {row["task"]: row["num_requests"] for row in rows[1:3]} == {"code": 3, "qa": 3}
    assert sum(row["num_requests"] for row in rows[3:]) == NUM_REQUESTS
    for row in rows:
        assert 0 < row["hit_ratio"] < 1
        assert 0 < row["sent_coverage"] <= row["cluster_coverage"] + 1e-9 <= 1 + 1e-9
        assert 8 <= row["distinct_experts"] <= 24


def test_a_replay_of_a_placement_that_there_is_not_is_refused(tmp_path: Path) -> None:
    trace, data = write_trace(tmp_path / "trace.csv"), write_data(tmp_path / "data")
    for option in ("--placement=anywhere", "--workers=two", "--workers=0,2"):
        result = CliRunner().invoke(app, ["replay", str(trace), f"--data={data}", option])
        assert result.exit_code != 0
        assert option.split("=")[0] in result.stderr


def test_every_number_of_workers_is_replayed_with_every_placement() -> None:
    options = ReplayOptions(
        model=Path("m"),
        strategies=("emoe",),
        resident_ratios=(0.25,),
        num_workers=(2, 4),
        placements=("most-free", "residency"),
    )
    runs = [(run.num_workers, run.placement) for run in _runs(options)]
    assert runs == [(2, "most-free"), (2, "residency"), (4, "most-free"), (4, "residency")]
    assert {"emoe"} <= STRATEGIES.keys()
    assert str(Run(strategy="emoe", resident_ratio=0.25, num_workers=2, placement="residency")) == (
        "emoe, 25%, 2 workers, residency"
    )
