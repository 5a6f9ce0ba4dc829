"""The comparison of predictors as text: a table a resident share, a row a method, a column a stream and interval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from emoe.train.sequence_compare import AccuracyRow, CoverageRow, MethodRow

_T = TypeVar("_T")


def render_tables(
    coverage: Sequence[CoverageRow], accuracy: Sequence[AccuracyRow], methods: Sequence[MethodRow]
) -> str:
    parts = []
    for ratio in _unique(row.resident_ratio for row in coverage):
        for refresh in _unique(row.refresh_prompts for row in coverage):
            chosen = [row for row in coverage if (row.resident_ratio, row.refresh_prompts) == (ratio, refresh)]
            parts.append(f"coverage, {ratio:.0%} resident, a plan every {refresh} prompts (share of the gap closed)")
            parts.append(_pivot((row.method, row.stream, _covered(row)) for row in chosen))
    parts.append("top-k indices of the next prompt foretold")
    parts.append(_pivot((row.method, row.stream, f"{row.index_accuracy_ratio:.3f}") for row in accuracy))
    parts.append("what each costs")
    parts.append(_pivot(cell for row in methods for cell in _costs(row)))
    return "\n".join(parts)


def _covered(row: CoverageRow) -> str:
    return f"{row.coverage_ratio:.3f}" + (f" ({row.gap_closed_ratio:.2f})" if row.gap_closed_ratio is not None else "")


def _costs(row: MethodRow) -> Iterable[tuple[str, str, str]]:
    yield row.method, "parameters", f"{row.num_parameters}"
    yield row.method, "bytes", f"{row.stored_bytes}"
    yield row.method, "a prediction", f"{row.predict_seconds * 1000:.3f} ms"
    yield row.method, "training", f"{row.training_seconds:.0f} s"


def _pivot(cells: Iterable[tuple[str, str, str]]) -> str:
    """Cells of (row, column, text), as a Markdown table."""
    found = {(row, column): text for row, column, text in cells}
    rows, columns = _unique(row for row, _ in found), _unique(column for _, column in found)
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    lines += [[row, *(found.get((row, column), "-") for column in columns)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _unique(values: Iterable[_T]) -> list[_T]:
    return list(dict.fromkeys(values))
