"""A benchmark's report, for people and for programs: columns come from the rows' own fields and their units."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from emoe.cli.footprint_table import format_bytes

if TYPE_CHECKING:
    from emoe.bench.rows import Machine, Report

WIDTH_WITHOUT_TERMINAL = 160


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def give(report: Report, json_file: Path | None) -> None:
    """The table on stdout, and JSON in `json_file`; with `-`, JSON alone on stdout."""
    text = json.dumps(dataclasses.asdict(report), indent=1)
    if json_file == Path("-"):
        print(text)
        return
    print_report(report)
    if json_file is not None:
        json_file.write_text(text + "\n")


def print_report(report: Report) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH_WITHOUT_TERMINAL)
    console.print(f"[bold]{report.benchmark}[/] of {Path(report.model).name} ({report.family})")
    console.print(_settings_line(report))
    console.print(_machine_line(report.machine))
    console.print(_table(report))


def _settings_line(report: Report) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_setting(value)}" for name, value in report.settings.items())


def _setting(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "-" if value is None else str(value)


def _machine_line(machine: Machine) -> str:
    versions = f"torch {machine.torch}, transformers {machine.transformers}, Python {machine.python}"
    cpus = f"{machine.cpu}, {machine.num_cpus} CPUs, {machine.threads} threads, load {machine.load_average:.1f}"
    return f"{cpus}; {versions}"


def _table(report: Report) -> Table:
    table = Table(box=None, pad_edge=False)
    names = [field.name for field in dataclasses.fields(report.rows[0]) if field.name != "samples"]
    for name in names:
        is_text = isinstance(getattr(report.rows[0], name), str)
        table.add_column(heading(name), justify="left" if is_text else "right", overflow="fold")
    for row in report.rows:
        table.add_row(*(format_figure(name, getattr(row, name)) for name in names))
    return table


def heading(name: str) -> str:
    """`total_tokens_per_second` -> `total tokens/s`: units stand in the cells or here."""
    for suffix, unit in (("_tokens_per_second", " tokens/s"), ("_per_second", "/s"), ("_seconds", ""), ("_bytes", "")):
        if name.endswith(suffix):
            return name.removesuffix(suffix).replace("_", " ") + unit
    return name.replace("_", " ")


def format_figure(name: str, value: object) -> str:
    if value is None:
        return "-"
    if name.endswith("_bytes") and isinstance(value, int):
        return f"-{format_bytes(-value)}" if value < 0 else format_bytes(value)
    if name.endswith("_seconds") and isinstance(value, float):
        return f"{value * 1000:.1f} ms"
    if name.endswith("_ratio") and isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
