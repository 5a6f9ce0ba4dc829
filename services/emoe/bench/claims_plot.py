"""A picture for each claim: all resident, ours in each mode, and a line where the paper's ratio would put ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emoe.bench.rows import ClaimRow
from emoe.core.errors import InvalidRequestError
from emoe.eval.plots import DPI, PALETTE, import_pyplot

INCHES = (4.6, 3.4)


def draw_claims(rows: Sequence[ClaimRow], folder: Path) -> list[Path]:
    """The files, one a claim. InvalidRequestError when matplotlib is missing or a file cannot be written."""
    drawn = []
    for claim in dict.fromkeys(row.claim for row in rows):
        shown = [row for row in rows if row.claim == claim and row.ours is not None and row.all_resident is not None]
        if shown:
            path = folder / f"claims-{claim.replace(',', '').replace(' ', '-')}.png"
            _draw(shown, path)
            drawn.append(path)
    return drawn


def _draw(rows: Sequence[ClaimRow], path: Path) -> None:
    figure, axis = import_pyplot().subplots(figsize=INCHES, layout="constrained")
    all_resident = rows[0].all_resident or 0.0
    labels = ["all resident", *(f"{row.mode} {row.budget_ratio:.3g}" for row in rows)]
    bars = axis.bar(labels, [all_resident, *(row.ours or 0.0 for row in rows)], color=PALETTE[: len(labels)])
    axis.bar_label(bars, fmt="{:.4g}", fontsize=8)
    if rows[0].paper_ratio is not None:
        level = all_resident * rows[0].paper_ratio
        axis.axhline(level, color="#888888", linestyle="--", linewidth=0.9)
        axis.annotate(f"the paper's ratio, {rows[0].paper_ratio:g}", (0, level), fontsize=7, va="bottom", ha="center")
    axis.set_title(rows[0].claim, fontsize=10)
    axis.set_ylabel(rows[0].unit, fontsize=9)
    axis.tick_params(labelsize=8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI, format="png")
    except OSError as error:
        raise InvalidRequestError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        import_pyplot().close(figure)
