"""`emoe bench refresh` over real systems of a small random model, on rows of two tasks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from cli_models import save_small_model
from typer.testing import CliRunner

from emoe.bench.refresh import REFRESH, STATIC, RefreshBench, RefreshSettings
from emoe.bench.refresh_load import read_turns
from emoe.cli.bench_refresh_run import RefreshRun, measure
from emoe.cli.commands import app
from emoe.core.errors import InvalidRequestError
from emoe.store.store import ExpertStore

LETTERS = {"code": "abcd", "math": "0123"}


def write_rows(folder: Path, *, num_rows: int) -> Path:
    (folder / "test").mkdir(parents=True)
    for task, letters in LETTERS.items():
        rows = [
            {"prompt": letters * (1 + number), "response": letters[::-1] * (1 + number % 2)}
            for number in range(num_rows)
        ]
        (folder / "test" / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.timeout(300)
async def test_refresh_and_a_kept_plan_give_the_same_answers_and_say_how_likely_they_were(tmp_path: Path) -> None:
    model, data = save_small_model(tmp_path / "model"), write_rows(tmp_path / "data", num_rows=6)
    settings = RefreshSettings(resident="60%", clients=2, requests=4, repeats=1, max_context=64, threads=1)
    run = RefreshRun(model=model, data=data, settings=settings, calibration=None)
    with ExpertStore.open(model) as store:
        turns = read_turns(store, data, num_turns=2, num_requests=4, max_context=64, seed=0)
    benches: list[RefreshBench] = []
    (tmp_path / "run").mkdir()

    await measure(run, (REFRESH, STATIC), turns, tmp_path / "run", benches.append, say=lambda _line: None)

    (refreshed,), (kept,) = benches[0].samples[REFRESH], benches[0].samples[STATIC]
    num_tokens = sum(len(ask.answer) for ask in turns[1])
    for sample in (refreshed, kept):
        assert (sample.num_tokens, len(sample.ttft_seconds)) == (num_tokens, 4)
        assert sample.processor_seconds.keys() == {"predictor", "loader", "worker", "scheduler"}
        assert 0 < sample.num_expert_hits < sample.num_expert_choices
        assert 0 < sample.nll < math.inf
    assert refreshed.num_plans > 0 == kept.num_plans == kept.num_loaded_bytes


def test_too_few_rows_are_named(tmp_path: Path) -> None:
    model, data = save_small_model(tmp_path / "model"), write_rows(tmp_path / "data", num_rows=3)
    with ExpertStore.open(model) as store, pytest.raises(InvalidRequestError, match="rows for 6 of the 8 requests"):
        read_turns(store, data, num_turns=2, num_requests=4, max_context=64, seed=0)


def test_a_calibration_that_is_missing_is_named(tmp_path: Path) -> None:
    model = save_small_model(tmp_path / "model")
    asked = ["bench", "refresh", str(model), f"--data={tmp_path}", f"--calibration={tmp_path / 'none'}"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 1
    assert "there is no such calibration" in result.output


def test_fewer_requests_than_clients_are_a_usage_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "refresh", f"--data={tmp_path}", "--requests=2", "--clients=3"])
    assert result.exit_code == 2
    assert "at least the 3 clients" in result.output
