"""Which panels an evaluation's rows become: what is lost, against how few experts stay, and at what cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emoe.eval.ablation_lab import AblationRow
from emoe.eval.measures import MEAN, QualityRow
from emoe.eval.plots import Line, Panel, draw_panels
from emoe.eval.routing_eval import RoutingRow
from emoe.eval.strategies import ALL_RESIDENT, RANDOM, SHUFFLED

COLUMNS = 4
ORDER = (
    "emoe",
    "global-frequency",
    "task-frequency",
    "retrieval-embedding",
    "retrieval-first-gate",
    "retrieval-trajectory",
    "oracle",
    "random",
)
"""Of colours: a strategy has its own in every figure."""
ABLATION_ORDER = ("emoe", "global-frequency", "task-frequency", "decayed-frequency", "static-frequency", "", "oracle")
SHARE = "experts resident"
LOST = "perplexity / all resident"
MIB = 2**20
KNOBS = {
    "p": "prompts between two choices (p)",
    "resident_ratio": SHARE,
    "wrong_label_ratio": "requests with a wrong task",
    "prompts_since_change": "prompts since the mix changed",
}
FIGURES: Mapping[str, Callable[[AblationRow], float]] = {
    LOST: lambda row: row.perplexity_ratio,
    "coverage": lambda row: row.coverage,
    "MiB moved a request": lambda row: row.bytes_moved / MIB,
}


def draw_quality(rows: Sequence[QualityRow], path: Path, *, title: str) -> None:
    """A panel a task, the mean first, for each load."""
    drawn = _group((row for row in rows if row.strategy != ALL_RESIDENT), lambda row: (row.load, row.task))
    leaving = frozenset(
        row.strategy for row in rows if row.strategy.startswith(RANDOM) or row.strategy.endswith(SHUFFLED)
    )
    panels: list[list[Panel]] = []
    for load in dict.fromkeys(row.load for row in rows):
        tasks = [MEAN, *sorted({row.task for row in rows} - {MEAN})]
        for first in range(0, len(tasks), COLUMNS):
            panels.append(
                [
                    Panel(
                        title=f"{'mean of the tasks' if task == MEAN else task}, {load}",
                        lines=_lines(
                            drawn[load, task], lambda row: row.resident_ratio, lambda row: row.perplexity_ratio
                        ),
                        xlabel=SHARE,
                        ylabel=LOST if place == 0 else "",
                        shares_along=True,
                        level=1.0,
                        leaving=leaving,
                    )
                    for place, task in enumerate(tasks[first : first + COLUMNS])
                ]
            )
    draw_panels(panels, path, title=title, order=ORDER)


def draw_routing(rows: Sequence[RoutingRow], path: Path, *, title: str) -> None:
    """Coverage: a row of panels for each time of choosing, a column for what was unseen."""
    drawn = _group(rows, lambda row: (row.refresh_tokens, row.unseen))
    panels: dict[int | None, list[Panel]] = {}
    for (refresh_tokens, unseen), part in drawn.items():
        when = "once" if refresh_tokens is None else f"every {refresh_tokens} tokens"
        panels.setdefault(refresh_tokens, []).append(
            Panel(
                title=f"chosen {when}, {unseen} unseen",
                lines=_lines(part, lambda row: row.resident_ratio, lambda row: row.coverage),
                xlabel="experts of each layer resident",
                ylabel="coverage",
                shares_along=True,
            )
        )
    draw_panels(list(panels.values()), path, title=title, order=ORDER)


def draw_ablations(rows: Sequence[AblationRow], path: Path, *, title: str) -> None:
    """A row of panels for each study, mix and resident share; the sweep over shares is one."""
    sweep = "resident_ratio"
    drawn = _group(rows, lambda row: (row.study, row.mix, row.knob, None if row.knob == sweep else row.resident_ratio))
    panels = [
        [
            Panel(
                title=", ".join([study, mix, *([] if ratio is None else [f"{ratio:.0%} resident"])])
                if place == 0
                else "",
                lines=_lines(part, lambda row: row.value, figure),
                xlabel=KNOBS[knob],
                ylabel=name,
                shares_along=knob in (sweep, "wrong_label_ratio"),
            )
            for place, (name, figure) in enumerate(FIGURES.items())
        ]
        for (study, mix, knob, ratio), part in drawn.items()
    ]
    draw_panels(panels, path, title=title, order=ABLATION_ORDER)


def _group(rows: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    found: dict[Any, list[Any]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def _lines(rows: Sequence[Any], x: Callable[[Any], float], y: Callable[[Any], float]) -> tuple[Line, ...]:
    strategies = _group(rows, lambda row: row.strategy)
    return tuple(Line(label=name, points=tuple((x(row), y(row)) for row in part)) for name, part in strategies.items())
