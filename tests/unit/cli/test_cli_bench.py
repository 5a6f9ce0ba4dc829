"""The options of `emoe bench`, and how its figures are shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from emoe.bench.rows import Machine, ReadRow, Report
from emoe.cli.bench_engine import parse_counts
from emoe.cli.bench_report import give
from emoe.cli.rows_table import format_figure, heading

REPORT = Report(
    benchmark="reads",
    model="/models/m",
    family="mixtral",
    machine=Machine(cpu="C", num_cpus=2, threads=2, load_average=0.1, python="3", torch="2", transformers="5"),
    settings={"num_tokens": 1, "threads": None},
    rows=(
        ReadRow(
            token=1,
            num_experts=4,
            needed_bytes=2048,
            asked_bytes=2048,
            device_bytes=None,
            asked_ratio=1.0,
            device_ratio=None,
        ),
    ),
)


def test_counts_are_separated_by_commas() -> None:
    assert parse_counts("--batches", "1, 8,32") == (1, 8, 32)


@pytest.mark.parametrize("text", ["", "1,", "0", "-1", "a", "1;2"], ids=repr)
def test_other_counts_are_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="separated by commas"):
        parse_counts("--batches", text)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("slot_bytes", 2048, "2.00 KiB"),
        ("overhead_bytes", -2048, "-2.00 KiB"),
        ("ttft_p50_seconds", 0.0312, "31.2 ms"),
        ("total_ratio", 0.9, "0.900"),
        ("tokens_per_second", 12.34, "12.3"),
        ("device_ratio", None, "-"),
        ("engine", "emoe", "emoe"),
    ],
    ids=lambda value: str(value),
)
def test_a_figure_is_shown_in_its_unit(name: str, value: object, shown: str) -> None:
    assert format_figure(name, value) == shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [("total_tokens_per_second", "total tokens/s"), ("tokens_per_second", "tokens/s"), ("peak_bytes", "peak")],
    ids=["rate of something", "rate", "bytes"],
)
def test_a_heading_names_what_the_cells_do_not(name: str, shown: str) -> None:
    assert heading(name) == shown


def test_the_table_goes_with_a_json_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    give(REPORT, tmp_path / "out.json")
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("reads of m (mixtral)", "2.00 KiB", "asked ratio", "2 threads"))
    assert json.loads((tmp_path / "out.json").read_text())["rows"][0]["needed_bytes"] == 2048


def test_json_can_take_the_tables_place(capsys: pytest.CaptureFixture[str]) -> None:
    give(REPORT, Path("-"))
    assert json.loads(capsys.readouterr().out)["machine"]["threads"] == 2
