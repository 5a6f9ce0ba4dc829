"""Rows of `emoe bench claims`: each claim of eMoE (arXiv 2503.06823) beside what was measured, held or not."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from emoe.bench.claims import ALL_RESIDENT, ClaimResults, ClaimSettings, Times
from emoe.bench.claims_probe import Contestant, Probed
from emoe.bench.claims_search import Found
from emoe.bench.rows import ClaimRow

MEBIBYTE = 1024 * 1024
MEMORY, EXPERT_MEMORY, LATENCY = "memory", "expert memory", "latency"
PROMPT, BATCH, OWN_THROUGHPUT = "longest prompt", "largest batch", "throughput, own batch"
PAPER_RATIOS = {MEMORY: 0.2, LATENCY: 0.83, PROMPT: 40.0, BATCH: 4.5, OWN_THROUGHPUT: 1.5}
"""Section 5 and the abstract: up to 80 % less memory, 17 % less latency, 40 times the prompt, 4.5 times the batch, 1.5
times the throughput."""
PAPER_NOTE = (
    "The paper's ratios are its best: Mixtral on GPUs; memory at a fifth of the experts resident, prompt, batch and "
    "throughput at three fifths; latency of whole answers under load, against DeepSpeed-FastGen."
)
MODES_NOTE = "Mode reroute changes answers: absent experts are replaced. Mode load is exact: absent experts are read."

Figure = Callable[[Probed], float]


def build_rows(results: ClaimResults) -> list[ClaimRow]:
    """A row for each claim that was measured, and each of our modes."""
    ours = [contestant for contestant in results.memory if contestant != ALL_RESIDENT]
    memory = {contestant: [probed] for contestant, probed in results.memory.items()}
    timed: list[tuple[str, str, Times, Figure]] = [
        (MEMORY, "MiB", memory, lambda probed: probed.peak_bytes / MEBIBYTE),
        (EXPERT_MEMORY, "MiB", memory, lambda probed: probed.expert_bytes / MEBIBYTE),
        (LATENCY, "ms an answer", results.single, lambda probed: probed.total_seconds * 1000),
        ("first token", "ms", results.single, lambda probed: probed.prefill_seconds * 1000),
        ("further tokens", "ms each", results.single, _token_milliseconds),
        (f"throughput, batch {results.shared_batch}", "tokens/s", results.shared, _rate),
        (OWN_THROUGHPUT, "tokens/s", results.own, _rate),
    ]
    rows = [_timed(*each, contestant) for each in timed for contestant in ours]
    rows += [_found(BATCH, "prompts", results.batches, contestant) for contestant in ours]
    rows += [_found(PROMPT, "tokens", results.prompts, contestant) for contestant in ours]
    return [row for row in rows if row is not None]


def build_notes(results: ClaimResults, settings: ClaimSettings) -> list[str]:
    notes = [PAPER_NOTE, MODES_NOTE]
    if results.cap_bytes is not None:
        notes.append(_cap_line(results.cap_bytes, settings))
    for name, found_by in ((BATCH, results.batches), (PROMPT, results.prompts)):
        found = found_by.get(ALL_RESIDENT)
        if found is not None:
            size = "none" if found.size is None else found.size
            notes.append(f"{name} of all resident: {size}, ended by {found.ended_by}")
    return notes + results.notes


def _cap_line(cap_bytes: int, settings: ClaimSettings) -> str:
    where = "the device" if settings.device.startswith("cuda") else "a memory cgroup, page cache included"
    origin = (
        "as asked"
        if settings.memory_cap_bytes is not None
        else f"all resident's least for a prompt of {settings.prompt_tokens}, and {settings.slack_ratio:.1%}"
    )
    return f"Memory cap: {cap_bytes / MEBIBYTE:.0f} MiB of {where}; {origin}. The memory rows are without a cap."


def _timed(claim: str, unit: str, times: Times, figure: Figure, contestant: Contestant) -> ClaimRow | None:
    if not times.get(contestant) or not times.get(ALL_RESIDENT):
        return None
    samples = tuple(
        (figure(theirs), figure(ours)) for theirs, ours in zip(times[ALL_RESIDENT], times[contestant], strict=False)
    )
    return _row(
        claim,
        unit,
        contestant,
        statistics.median(theirs for theirs, _ in samples),
        statistics.median(ours for _, ours in samples),
        samples=samples,
    )


def _found(claim: str, unit: str, found: dict[Contestant, Found], contestant: Contestant) -> ClaimRow | None:
    if contestant not in found:
        return None
    return _row(
        claim, unit, contestant, found[ALL_RESIDENT].size, found[contestant].size, ended_by=found[contestant].ended_by
    )


def _row(
    claim: str,
    unit: str,
    contestant: Contestant,
    theirs: float | None,
    ours: float | None,
    *,
    ended_by: str | None = None,
    samples: Sequence[tuple[float, float]] = (),
) -> ClaimRow:
    return ClaimRow(
        claim=claim,
        mode=contestant.miss_policy,
        budget_ratio=contestant.budget_ratio,
        unit=unit,
        all_resident=None if theirs is None else float(theirs),
        ours=None if ours is None else float(ours),
        ours_ratio=ours / theirs if ours is not None and theirs else None,
        paper_ratio=PAPER_RATIOS.get(claim),
        ended_by=ended_by,
        samples=tuple(samples),
    )


def _token_milliseconds(probed: Probed) -> float:
    return (probed.total_seconds - probed.prefill_seconds) * 1000 / (probed.work.new_tokens - 1)


def _rate(probed: Probed) -> float:
    return probed.work.batch * probed.work.new_tokens / probed.total_seconds
