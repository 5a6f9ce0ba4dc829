"""Tokens a second against memory, a panel a model, for the first batch: emoe's budgets are a line, peers are points."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from emoe.bench.rows import ContestRow
from emoe.eval.plots import Line, Panel, draw_panels

MEBIBYTE = 1024 * 1024


def draw_contest(rows: Sequence[ContestRow], path: Path) -> None:
    """InvalidRequestError when matplotlib is missing or the file cannot be written."""
    models = list(dict.fromkeys(row.model for row in rows))
    panels = [_panel(model, [row for row in rows if row.model == model]) for model in models]
    draw_panels([panels], path, title="Decoded tokens a second against peak anonymous memory")


def _panel(model: str, rows: Sequence[ContestRow]) -> Panel:
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    batch = rows[0].batch
    for row in rows:
        if row.batch == batch:
            place = row.peak_anon_bytes / MEBIBYTE, row.decode_tokens_per_second
            points[f"{row.engine} {row.mode}"].append(place)
    lines = tuple(Line(label=label, points=tuple(sorted(each))) for label, each in points.items())
    return Panel(title=f"{model}, batch {batch}", lines=lines, xlabel="MiB anonymous", ylabel="tokens/s")
