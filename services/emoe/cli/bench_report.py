"""A benchmark's report, for people and for programs."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from emoe.cli.rows_table import build_table, wide_console

if TYPE_CHECKING:
    from emoe.bench.rows import Machine, Report


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
    console = wide_console()
    console.print(f"[bold]{report.benchmark}[/] of {Path(report.model).name} ({report.family})")
    console.print(_settings_line(report))
    console.print(_machine_line(report.machine))
    console.print(build_table(report.rows))
    for note in report.notes:
        console.print(note, markup=False)


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
