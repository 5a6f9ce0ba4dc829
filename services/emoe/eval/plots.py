"""Panels of lines as one PNG file: matplotlib without a display, colours that the colour-blind tell apart.

A strategy has the same colour and marker in every panel; calibrated, its line is thick and its marker filled; shuffled,
it is dotted. Knows lines, and nothing of what they mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emoe.core.errors import InvalidRequestError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CALIBRATED, SHUFFLED, KEPT = "-calibrated", "-shuffled", "-kept"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B5A2B")
"""Okabe and Ito's colours; their yellow, too pale for lines, gives way to brown."""
MARKERS = "osD^vPX*"
PANEL_INCHES = (3.2, 2.6)
DPI = 130
MAX_TICKS = 10
LEGEND_INCHES = 2.4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    label: str
    points: tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    title: str
    lines: tuple[Line, ...]
    xlabel: str = ""
    ylabel: str = ""
    shares_along: bool = False
    """Whether x is a share."""
    level: float | None = None
    """A thin line across: where nothing is lost."""
    leaving: frozenset[str] = frozenset()
    """Labels that may lie so far above the others that these would be pressed to the floor: they leave at the top."""


def draw_panels(panels: Sequence[Sequence[Panel]], path: Path, *, title: str, order: Sequence[str] = ()) -> None:
    """Rows of panels. Labels in `order` take the colours in turn, whether they are drawn or not; others come after.

    InvalidRequestError when matplotlib is missing or the file cannot be written."""
    pyplot = import_pyplot()
    num_columns = max(map(len, panels))
    width, height = PANEL_INCHES
    figure, axes = pyplot.subplots(
        len(panels),
        num_columns,
        figsize=(max(width * num_columns, 9.0), height * len(panels) + 1.5),
        squeeze=False,
        layout="constrained",
    )
    styles = styles_of((line.label for row in panels for panel in row for line in panel.lines), order)
    handles: dict[str, Any] = {}
    for row, row_axes in zip(panels, axes, strict=True):
        for axis in row_axes[len(row) :]:
            axis.set_visible(False)
        for panel, axis in zip(row, row_axes, strict=False):
            handles |= _draw(axis, panel, styles)
    figure.suptitle(title)
    named = [label for label in styles if label in handles]
    figure.legend(
        [handles[label] for label in named],
        named,
        loc="outside lower center",
        ncols=int(figure.get_figwidth() / LEGEND_INCHES),
        frameon=False,
    )
    try:
        figure.savefig(path, dpi=DPI, format="png")
    except OSError as error:
        raise InvalidRequestError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        pyplot.close(figure)


def import_pyplot() -> Any:
    """InvalidRequestError where matplotlib is not installed: ask before a long run, not after it."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise InvalidRequestError("--plot needs matplotlib: pip install 'emoe[eval]'") from error
    matplotlib.use("agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def _draw(axis: Axes, panel: Panel, styles: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """-> what a legend shows of each label."""
    handles = {}
    for line in panel.lines:
        (handles[line.label],) = axis.plot(*zip(*sorted(line.points), strict=True), **styles[line.label])
    axis.set_title(panel.title, fontsize=10)
    axis.set_xlabel(panel.xlabel, fontsize=9)
    axis.set_ylabel(panel.ylabel, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(visible=True, color="#e0e0e0", linewidth=0.6)
    if panel.shares_along:
        shares = sorted({x for line in panel.lines for x, _ in line.points})
        if len(shares) <= MAX_TICKS:
            axis.set_xticks(shares)
        axis.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    if panel.level is not None:
        axis.axhline(panel.level, color="#888888", linewidth=0.8)
    shown = [y for line in panel.lines if line.label not in panel.leaving for _, y in line.points]
    if shown and panel.leaving:
        low, high = min(shown + ([] if panel.level is None else [panel.level])), max(shown)
        axis.set_ylim(low - 0.05 * (high - low) - 1e-3, high + 0.05 * (high - low) + 1e-3)
    return handles


def styles_of(labels: Iterable[str], order: Sequence[str] = ()) -> dict[str, Mapping[str, Any]]:
    """Of each label: what it shares with its kin, and what tells it from them."""
    named = list(dict.fromkeys(labels))
    bases = list(dict.fromkeys([*order, *map(_base, named)]))
    styles: dict[str, Mapping[str, Any]] = {}
    for label in named:
        place = bases.index(_base(label))
        is_strong = CALIBRATED in label
        styles[label] = {
            "color": PALETTE[place % len(PALETTE)],
            "marker": MARKERS[place % len(MARKERS)],
            "markersize": 5 if is_strong else 4,
            "markerfacecolor": PALETTE[place % len(PALETTE)] if is_strong else "white",
            "linewidth": 2.0 if is_strong else 1.2,
            "linestyle": ":" if label.endswith(SHUFFLED) else "--" if label.endswith(KEPT) else "-",
        }
    return styles


def _base(label: str) -> str:
    return label.removesuffix(SHUFFLED).removesuffix(CALIBRATED).removesuffix(KEPT)
