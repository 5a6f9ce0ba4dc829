"""The table of `emoe demo`, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from emoe.cli.demo import DemoRow
from emoe.cli.display import format_ratio
from emoe.cli.generate import describe_answer

WIDTH_WITHOUT_TERMINAL = 140


def print_demo(rows: Sequence[DemoRow]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_WITHOUT_TERMINAL)
    console.print(_table(rows))


def describe_demo(rows: Sequence[DemoRow], *, model: str, total_seconds: float) -> dict[str, Any]:
    return {
        "passed": all(row.passed for row in rows),
        "model": model,
        "total_seconds": total_seconds,
        "rows": [_describe(row) for row in rows],
    }


def _table(rows: Sequence[DemoRow]) -> Table:
    table = Table(show_lines=True)
    table.add_column("task")
    table.add_column("prompt", ratio=3)
    table.add_column("answer", ratio=3)
    for heading in ("TTFT", "tokens/s", "hit rate", "resident"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.task, Text(row.prompt), _answer_cell(row), *_figures(row))
    return table


def _answer_cell(row: DemoRow) -> Text:
    text = Text(row.answer.text.strip() if row.answer else "")
    if row.failure:
        text.append(f"{' ' if text else ''}[{row.failure}]", style="red")
    return text


def _figures(row: DemoRow) -> tuple[str, ...]:
    if row.answer is None:
        return ("-",) * 4
    speed = row.answer.decode_tokens_per_second
    return (
        f"{row.answer.ttft_seconds * 1000:.0f} ms",
        "-" if speed is None else f"{speed:.0f}",
        format_ratio(row.answer.hit_rate),
        f"{row.num_resident}/{row.num_experts}",
    )


def _describe(row: DemoRow) -> dict[str, Any]:
    return {
        "task": row.task,
        "prompt": row.prompt,
        "passed": row.passed,
        "failure": row.failure,
        "num_resident": row.num_resident,
        "num_experts": row.num_experts,
        "answer": describe_answer(row.answer) if row.answer else None,
    }
