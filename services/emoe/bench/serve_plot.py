"""A replay as a picture: what came and what was answered in time, and the times to the first token, over its length."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from emoe.bench.schedule_rows import Floats, attains
from emoe.bench.schedule_trace import Workload
from emoe.bench.serve import ServeOutcome
from emoe.bench.serve_rows import percentile
from emoe.core.slo import Slo
from emoe.eval.plots import Line, Panel, draw_panels

Numbers = npt.NDArray[np.intp]
NUM_WINDOWS = 40


def draw(workload: Workload, outcome: ServeOutcome, slos: Mapping[str, Slo], path: Path) -> None:
    """InvalidRequestError when matplotlib is missing or the file cannot be written."""
    arrived, first, end = map(np.asarray, (workload.arrived_seconds, outcome.first_token_seconds, outcome.end_seconds))
    num_later = np.maximum(np.asarray(workload.answer_tokens) - 1, 1)
    attained = attains(workload.tasks, first - arrived, (end - first) / num_later, end - arrived, slos)
    edges = np.linspace(0.0, max(workload.span_seconds, 1e-3), max(2, min(NUM_WINDOWS, len(arrived) // 5)) + 1)
    window = np.clip(np.searchsorted(edges, arrived, side="right") - 1, 0, len(edges) - 2)
    rates = Panel(
        title="requests a second",
        xlabel="seconds",
        lines=(_rate("arrived", edges, window, np.ones(len(arrived))), _rate("in time", edges, window, attained)),
    )
    times = Panel(
        title="seconds to the first token",
        xlabel="seconds",
        lines=tuple(_share(name, edges, window, first - arrived, at) for name, at in (("p50", 50), ("p99", 99))),
    )
    draw_panels([[rates, times]], path, title=workload.name)


def _rate(label: str, edges: Floats, window: Numbers, counted: npt.NDArray[Any]) -> Line:
    counts = np.bincount(window, weights=counted, minlength=len(edges) - 1)
    return Line(label=label, points=tuple(zip(edges[:-1], counts / np.diff(edges), strict=True)))


def _share(label: str, edges: Floats, window: Numbers, values: Floats, share: float) -> Line:
    figures = [(edges[number], percentile(values[window == number], share)) for number in range(len(edges) - 1)]
    known = tuple((float(at), value) for at, value in figures if value is not None)
    return Line(label=label, points=known or ((0.0, 0.0),))
