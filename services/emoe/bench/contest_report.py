"""What `emoe bench engine` measured, as rows: medians over the rounds, null where a figure cannot be had."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence

from emoe.bench.contest_records import ContestSettings, Record, Results
from emoe.bench.contestants import OURS
from emoe.bench.rows import ContestRow, ContestSample, Machine, Report

UNKNOWN_NOTE = (
    "bytes copied are emoe's alone: the others have no slots. Bytes needed are the model's, as emoe's exact mode "
    "routes the same prompts: '-' where that took no part, and where a contestant answers with fewer tokens"
)


def build_report(
    all_results: Sequence[Results], settings: ContestSettings, *, machine: Machine, model: str, family: str
) -> Report:
    rows = tuple(row for results in all_results for row in build_rows(results, settings))
    notes = list(dict.fromkeys(note for results in all_results for note in results.notes))
    return Report(
        benchmark="engine",
        model=model,
        family=family,
        machine=machine,
        settings=dataclasses.asdict(settings),
        rows=rows,
        notes=(*notes, *([UNKNOWN_NOTE] if rows else [])),
    )


def build_rows(results: Results, settings: ContestSettings) -> list[ContestRow]:
    """Of every contestant and batch with at least one turn done."""
    needed = {batch: _exact_need(results, batch) for batch in settings.batches}
    return [
        _row(results, record, batch, settings, needed[batch])
        for batch in settings.batches
        for record in results.records
        if record.samples.get(batch)
    ]


def _exact_need(results: Results, batch: int) -> int | None:
    exact = (r for r in results.records if r.contestant.engine == OURS and r.contestant.mode == "load")
    return next((_median(s.bytes_needed for s in r.samples[batch]) for r in exact if r.samples.get(batch)), None)


def _row(results: Results, record: Record, batch: int, settings: ContestSettings, exact_need: int | None) -> ContestRow:
    contestant, samples = record.contestant, record.samples[batch]
    prefill_seconds = statistics.median(sample.prefill_seconds for sample in samples)
    own_need = _median(sample.bytes_needed for sample in samples)
    answers_whole = contestant.max_new_tokens is None or contestant.max_new_tokens >= settings.new_tokens
    return ContestRow(
        engine=contestant.engine,
        model=results.name,
        mode=contestant.mode,
        budget_ratio=contestant.budget_ratio,
        batch=batch,
        prefill_tokens_per_second=batch * settings.prompt_tokens / prefill_seconds,
        decode_tokens_per_second=_decode_rate(samples),
        ttft_seconds=prefill_seconds,
        peak_anon_bytes=record.peak_anon_bytes,
        bytes_read=_bytes_read(record, batch, results, settings),
        bytes_needed=own_need if own_need is not None else exact_need if answers_whole else None,
        bytes_copied=_median(sample.bytes_copied for sample in samples),
        max_logit_difference=_difference(record.logits, results.reference_logits),
        memory_cap_bytes=results.memory_cap_bytes,
        samples=tuple(samples),
    )


def _bytes_read(record: Record, batch: int, results: Results, settings: ContestSettings) -> int | None:
    """A turn's under a cap, where each reads; else the first turn's, which was of one prompt."""
    if results.memory_cap_bytes is not None:
        return _median(sample.bytes_read for sample in record.samples[batch])
    return record.bytes_read if batch == 1 or batch == settings.batches[0] else None


def _decode_rate(samples: Sequence[ContestSample]) -> float:
    return samples[0].num_decoded_tokens / statistics.median(sample.decode_seconds for sample in samples)


def _median(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return int(statistics.median(known)) if known else None


def _difference(ours: Sequence[float] | None, reference: Sequence[float] | None) -> float | None:
    """None too where one of them is no number."""
    if ours is None or reference is None or len(ours) != len(reference):
        return None
    most = max(abs(one - other) for one, other in zip(ours, reference, strict=True))
    return most if math.isfinite(most) else None
