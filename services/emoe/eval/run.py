"""`emoe eval --data`: judges every strategy, and says where and how it was done and what it means."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from emoe.eval.harness import Say
from emoe.eval.measures import GapRow, LabelRow, QualityRow, find_gaps, find_label_worth
from emoe.eval.opening import Origin, RunOptions, find_calibration, open_harness
from emoe.eval.quality import QualitySettings, evaluate_quality
from emoe.eval.strategies import Variant, choose_variants


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualityReport:
    origin: Origin
    settings: QualitySettings
    rows: tuple[QualityRow, ...]
    summary: tuple[GapRow, ...]
    labels: tuple[LabelRow, ...]
    notes: tuple[str, ...]


def run_quality(folder: Path, data: Path, settings: QualitySettings, options: RunOptions, *, say: Say) -> QualityReport:
    """InvalidRequestError when the data has no rows that fit, or a strategy cannot be run."""
    variants = choose_variants(settings.strategies, has_calibration=find_calibration(folder, options) is not None)
    opened = open_harness(folder, data, options, variants=variants, conditions=settings.conditions, say=say)
    with opened as (harness, origin):
        rows = tuple(evaluate_quality(harness, settings, variants))
    labels = find_label_worth(rows)
    return QualityReport(
        origin=origin,
        settings=settings,
        rows=rows,
        summary=find_gaps(rows),
        labels=labels,
        notes=tuple(_notes(variants, labels)),
    )


def _notes(variants: Sequence[Variant], labels: Sequence[LabelRow]) -> Iterator[str]:
    blind = [variant.name for variant in variants if not variant.kind.reads_tasks]
    yield f"Never told a task, so that shuffled labels change nothing: {', '.join(blind)}."
    for strategy in sorted({row.strategy for row in labels}):
        of = [row for row in labels if row.strategy == strategy]
        lost = max(row.perplexity_ratio_lost for row in of), max(row.coverage_lost for row in of)
        if all(row.is_nothing for row in of):
            yield f"Task labels are worth nothing to {strategy}: shuffled, it loses nothing that counts anywhere here."
        else:
            places = ", ".join(sorted({f"{row.load} {row.resident_ratio:.0%}" for row in of if row.is_nothing}))
            free = f"; nothing at {places}" if places else ""
            yield (
                f"Shuffled task labels cost {strategy} up to {lost[0]:.3f} of perplexity ratio and {lost[1]:.3f} of "
                f"coverage{free}."
            )
