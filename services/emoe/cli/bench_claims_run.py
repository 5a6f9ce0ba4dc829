"""Runs `emoe bench claims`, and gives its report and pictures, also of a run that was broken off."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from emoe.cli.bench_break import ended_by_signals, run_until_broken_off
from emoe.cli.bench_report import give, say
from emoe.cli.paths import resolve_model

if TYPE_CHECKING:
    from emoe.bench.claims import ClaimResults, ClaimSettings
    from emoe.bench.rows import Machine, Report

SHAPE = "mix-s"
UNKNOWN_POSITIONS = 4096


def run_claims_command(
    model: Path | None,
    settings: ClaimSettings,
    *,
    cache: Path | None,
    json_file: Path | None,
    plot_dir: Path | None,
) -> None:
    """SystemExit(128 + the signal) after the report of a run that was broken off."""
    from emoe.bench.claims import ClaimResults, run_claims
    from emoe.bench.claims_probe import Prober
    from emoe.bench.machine import describe_machine
    from emoe.eval.plots import import_pyplot

    if plot_dir is not None:
        import_pyplot()
    machine = describe_machine(threads=settings.threads)
    with ended_by_signals():
        folder = resolve_model(model) if model is not None else _planted(cache)
    family, longest = _facts(folder)
    if settings.max_prompt is None:
        settings = dataclasses.replace(settings, max_prompt=longest - settings.new_tokens)
    prober = Prober(
        model=folder, threads=settings.threads, device=settings.device, deadline_seconds=settings.probe_seconds
    )
    results = ClaimResults()
    broken_off_by = asyncio.run(run_until_broken_off(run_claims(prober, settings, results, say=say)))
    if broken_off_by is not None:
        results.notes.append("broken off: these figures are of what was done")
        say(results.notes[-1])
    _give(_report(results, settings, machine, folder, family), json_file, plot_dir)
    if broken_off_by is not None:
        raise SystemExit(128 + broken_off_by)


def _planted(cache: Path | None) -> Path:
    from emoe.bench.planted import SHAPES
    from emoe.bench.planted_files import planted_checkpoint

    return planted_checkpoint(SHAPE, SHAPES[SHAPE], cache=cache, say=say)


def _facts(folder: Path) -> tuple[str, int]:
    """The family, and the positions that the model was made for."""
    from emoe.store.store import ExpertStore

    with ExpertStore.open(folder) as store:
        longest = store.config.get("max_position_embeddings")
        return store.family, longest if isinstance(longest, int) else UNKNOWN_POSITIONS


def _report(results: ClaimResults, settings: ClaimSettings, machine: Machine, folder: Path, family: str) -> Report:
    from emoe.bench.claims_report import build_notes, build_rows
    from emoe.bench.rows import Report

    asked = dataclasses.asdict(settings) | {"memory_cap_bytes": results.cap_bytes}
    return Report(
        benchmark="claims",
        model=str(folder),
        family=family,
        machine=machine,
        settings=asked,
        rows=tuple(build_rows(results)),
        notes=tuple(build_notes(results, settings)),
    )


def _give(report: Report, json_file: Path | None, plot_dir: Path | None) -> None:
    from emoe.bench.claims_plot import draw_claims
    from emoe.bench.rows import ClaimRow

    if not report.rows:
        for note in report.notes:
            say(note)
        return
    give(report, json_file)
    if plot_dir is not None:
        for path in draw_claims([row for row in report.rows if isinstance(row, ClaimRow)], plot_dir):
            say(f"drawn in {path}")
