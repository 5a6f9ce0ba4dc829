"""Attainment against load, a line a policy, a panel a trace."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from emoe.bench.schedule_rows import ScheduleRow
from emoe.eval.plots import Line, Panel, draw_panels

PANELS_A_ROW = 4


def draw_schedule(rows: Sequence[ScheduleRow], path: Path, *, wanted: float) -> None:
    """InvalidRequestError when matplotlib is missing or the file cannot be written."""
    panels = [_panel(trace, [row for row in rows if row.trace == trace], wanted) for trace in _named(rows)]
    in_rows = [panels[place : place + PANELS_A_ROW] for place in range(0, len(panels), PANELS_A_ROW)]
    order = tuple(dict.fromkeys(row.policy for row in rows))
    draw_panels(in_rows, path, title="Share of requests that met their SLO, by load (simulated)", order=order)


def _named(rows: Sequence[ScheduleRow]) -> list[str]:
    return list(dict.fromkeys(row.trace for row in rows))


def _panel(trace: str, rows: Sequence[ScheduleRow], wanted: float) -> Panel:
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        points[row.policy].append((row.load_rps, row.attainment))
    lines = tuple(Line(label=policy, points=tuple(sorted(each))) for policy, each in points.items())
    return Panel(
        title=f"{trace}, {rows[0].workers} workers", lines=lines, xlabel="requests/s", ylabel="in time", level=wanted
    )
