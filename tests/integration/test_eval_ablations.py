"""`emoe ablate`: every study on a small model, with figures that the knob must move, or must not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import save_with_tokenizer
from typer.testing import CliRunner

from emoe.cli.commands import app
from emoe.eval.ablations import NOISE_RATIOS, P_PROMPTS, STUDIES, WINDOW_PROMPTS

PROMPTS = 2 * WINDOW_PROMPTS
SWEEP = (0.4, 0.8)


def write_data(folder: Path) -> Path:
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        for task, letters in {"code": "abcd", "math": "0123", "chat": "xyz"}.items():
            texts = ["".join(random.choice(list(letters), 12)) for _ in range(12)]
            lines = [{"prompt": one, "response": other} for one, other in zip(texts[:6], texts[6:], strict=True)]
            (folder / split / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ablations")
    options = [f"--data={write_data(folder / 'data')}", f"--json={folder / 'report.json'}", "--threads=1"]
    options += [f"--plot={folder / 'plot.png'}", "--resident=50%", "--sweep=40%,80%", "--streams=1"]
    options += [f"--prompts={PROMPTS}", "--together=6"]
    result = CliRunner().invoke(app, ["ablate", str(save_with_tokenizer("olmoe", folder / "model")), *options])
    assert result.exit_code == 0, result.output
    assert (folder / "plot.png").stat().st_size > 10_000
    written: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return written


def rows(report: dict[str, Any], study: str, strategy: str, *, mix: str | None = None) -> list[dict[str, Any]]:
    of_study = [row for row in report["rows"] if (row["study"], row["strategy"]) == (study, strategy)]
    return [row for row in of_study if mix is None or row["mix"] == mix]


def test_every_study_is_made(report: dict[str, Any]) -> None:
    assert {row["study"] for row in report["rows"]} == set(STUDIES)


def test_the_rarer_residents_change_the_fewer_bytes_move(report: dict[str, Any]) -> None:
    kept = rows(report, "interval", "task-frequency-kept", mix="steady")
    assert [row["value"] for row in kept] == list(P_PROMPTS)
    moved = [row["bytes_moved"] for row in kept]
    assert moved[0] > moved[2] > moved[-1] == 0
    (static,) = {row["bytes_moved"] for row in rows(report, "interval", "global-frequency")}
    assert static == 0


def test_more_residents_cover_more(report: dict[str, Any]) -> None:
    for strategy in ("global-frequency", "decayed-frequency", "task-frequency", "emoe", "oracle"):
        few, many = rows(report, "static", strategy)
        assert (few["resident_ratio"], many["resident_ratio"]) == SWEEP
        assert few["coverage"] < many["coverage"]


def test_wrong_labels_cost_whoever_reads_them_and_nobody_else(report: dict[str, Any]) -> None:
    alone = rows(report, "label-noise", "task-frequency", mix="single")
    assert [row["value"] for row in alone] == list(NOISE_RATIOS)
    assert alone[0]["coverage"] > alone[-1]["coverage"]
    blind = rows(report, "label-noise", "global-frequency", mix="single")
    assert len({row["coverage"] for row in blind}) == 1


def test_windows_of_a_drift_have_each_request_once(report: dict[str, Any]) -> None:
    windows = rows(report, "drift", "static-frequency")
    assert [row["value"] for row in windows] == [-WINDOW_PROMPTS, 0]
    assert sum(row["num_requests"] for row in windows) == PROMPTS
    assert windows[0]["coverage"] > windows[-1]["coverage"], "what it knows is of the first tasks alone"


def test_a_study_that_there_is_not_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["ablate", f"--data={tmp_path}", "--study=weather"])
    assert result.exit_code == 2
    assert "weather" in result.output


def test_too_small_a_share_is_refused_before_anything_runs(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    model = save_with_tokenizer("olmoe", tmp_path / "model")
    result = CliRunner().invoke(app, ["ablate", str(model), f"--data={data}", "--resident=5%", "--threads=1"])
    assert result.exit_code == 1
    assert "5% resident" in result.output
