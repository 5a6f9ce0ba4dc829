"""`emoe bench planning`: the shapes it takes, and that it times what it names; not how fast that is."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from emoe.bench.planning import ModelShape, rows_from
from emoe.cli.bench import parse_shapes
from emoe.cli.commands import app
from emoe.core.planning import PLANNERS

SMALL = ModelShape(name="3x8", num_layers=3, num_experts=8, top_k=2)


def test_a_shape_is_layers_times_experts_and_how_many_a_token_chooses() -> None:
    shapes = [(shape.num_layers, shape.num_experts, shape.top_k) for shape in parse_shapes(["3x8", "48x128/8"])]
    assert shapes == [(3, 8, 2), (48, 128, 8)]


@pytest.mark.parametrize("text", ["", "8", "3x", "0x8", "3x8/0", "3x8/9", "3x1", "3X8", "3x8/2/2"], ids=repr)
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="layers x experts"):
        parse_shapes([text])


def test_rows_have_the_median_and_the_slowest_in_a_hundred() -> None:
    samples = {"wall": [float(value) for value in range(101)], "processor": [1.0] * 101}
    (row,) = rows_from(SMALL, {"plan": samples})
    assert (row.p50_seconds, row.p99_seconds, row.processor_p50_seconds) == (50.0, 99.0, 1.0)
    assert (row.shape, row.step, row.num_layers) == ("3x8", "plan", 3)


def test_every_planner_and_predictor_is_timed_on_one_thread() -> None:
    result = CliRunner().invoke(app, ["bench", "planning", "--shape=3x8", "--repeats=2", "--json=-"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    steps = [row["step"] for row in report["rows"]]
    assert steps[:2] == ["frequencies of 7 tasks", "own routing of 8 requests"]
    assert set(steps[2:]) == {f"{step}, {name}" for step in ("plan", "all") for name in PLANNERS}
    assert all(row["p99_seconds"] >= row["p50_seconds"] > 0 for row in report["rows"])
    assert report["machine"]["threads"] == 1
