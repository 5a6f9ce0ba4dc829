"""Rows of figures as a table: columns come from the rows' own fields, units from these fields' names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from emoe.cli.footprint_table import format_bytes

WIDTH_WITHOUT_TERMINAL = 160


def wide_console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH_WITHOUT_TERMINAL)


def build_table(rows: Sequence[Any]) -> Table:
    """A column for each field of these dataclasses but `samples`."""
    table = Table(box=None, pad_edge=False)
    names = [field.name for field in dataclasses.fields(rows[0]) if field.name != "samples"]
    for name in names:
        is_text = isinstance(getattr(rows[0], name), str)
        table.add_column(heading(name), justify="left" if is_text else "right", overflow="fold")
    for row in rows:
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
    if (name.endswith("_bytes") or name.startswith("bytes_")) and isinstance(value, int):
        return f"-{format_bytes(-value)}" if value < 0 else format_bytes(value)
    if name.endswith("_seconds") and isinstance(value, float):
        return f"{value * 1000:.1f} ms" if value >= 5e-4 or not value else f"{value * 1e6:.0f} us"
    if name.endswith(("_ratio", "_difference")) and isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
