"""`emoe bench schedule` as it is typed: rows, JSON, a plot, and what it says of wrong options."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from emoe.cli.bench import bench_app
from emoe.cli.bench_schedule_run import until_stopped


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rows = [f"{number / 2},{50 + number * 7 % 400},{1 + number * 5 % 30},chat" for number in range(120)]
    path = tmp_path / "minute.csv"
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens,task", *rows]))
    return path


def run(*words: object) -> Result:
    return CliRunner().invoke(bench_app, ["schedule", *map(str, words)])


def test_a_row_for_each_policy_and_load(trace: Path) -> None:
    result = run("--trace", trace, "--policy", "fifo", "--policy", "edf", "--load", "2,4", "--json", "-")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [(row["policy"], round(row["load_rps"], 3)) for row in rows] == [
        ("fifo", 2),
        ("fifo", 4),
        ("edf", 2),
        ("edf", 4),
    ]
    assert rows[0].keys() >= {
        *("policy", "trace", "workers", "goodput_rps", "attainment"),
        *("ttft_p50_seconds", "ttft_p99_seconds", "decision_p99_seconds"),
    }


def test_progress_goes_to_stderr_and_the_table_to_stdout(trace: Path) -> None:
    result = run("--trace", trace, "--policy", "fifo", "--seeds", 2)
    assert "minute, fifo" in result.stderr
    assert "goodput/s" in result.stdout
    assert "minute, fifo" not in result.stdout


def test_halved_targets_are_met_by_no_more(trace: Path) -> None:
    attained = [
        json.loads(run("--trace", trace, "--policy", "fifo", "--load", 12, "--slo-scale", scale, "--json", "-").stdout)
        for scale in (1.0, 0.05)
    ]
    whole, halved = (report["rows"][0]["attainment"] for report in attained)
    assert halved < whole


def test_goodput_and_its_plot(trace: Path, tmp_path: Path) -> None:
    plot = tmp_path / "goodput.png"
    result = run("--trace", trace, "--policy", "fifo", "--goodput", "--precision", 0.2, "--plot", plot, "--json", "-")
    (row,) = json.loads(result.stdout)["rows"]
    assert row["goodput_rps"] > 0
    assert row["attainment"] >= 0.99
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_day_of_users(trace: Path) -> None:
    words = ("--users", 1000, "--workers", 10, "--hours", 1.5, "--policy", "fifo", "--json", "-")
    rows = json.loads(run("--trace", trace, *words).stdout)["rows"]
    assert [row["hours"] for row in rows] == [1.0, 1.5]
    assert all(row["memory_bytes"] > 0 and row["workers"] == 10 for row in rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--policy", "lifo"), "there is no 'lifo'; there are edf"),
        (("--placement", "anywhere"), "there is no 'anywhere'"),
        (("--load", "much"), "numbers above 0"),
        (("--speed", "1,-2"), "numbers above 0"),
        (("--residency", "0.9:0.5"), "two shares"),
        (("--users", 10, "--policy", "fifo"), "--users needs --workers"),
        (("--users", 10, "--workers", 2), "takes one policy"),
    ],
    ids=["policy", "placement", "load", "speed", "residency", "workers", "policies"],
)
def test_wrong_options_are_refused_by_name(trace: Path, words: tuple[object, ...], message: str) -> None:
    result = run("--trace", trace, *words)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_a_trace_that_is_none_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "none.csv"
    path.write_text("a,b\n1,2\n")
    result = run("--trace", path)
    assert result.exit_code == 1
    assert "has no column" in result.stderr


def test_rows_that_are_done_stay_when_it_is_stopped() -> None:
    def rows() -> Iterator[int]:
        yield from (1, 2)
        raise KeyboardInterrupt

    assert until_stopped(rows()) == [1, 2]
