"""Runs what `emoe bench engine` was asked, and gives its report, also of a run that was broken off."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from emoe.cli.bench_break import ended_by_signals, run_until_broken_off
from emoe.cli.bench_report import give, say
from emoe.cli.paths import resolve_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emoe.bench.contest_records import ContestSettings, Results
    from emoe.bench.rows import Report


def run_one_process(
    model: Path | None,
    *,
    batches: tuple[int, ...],
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
    threads: int | None,
    json_file: Path | None,
) -> None:
    from emoe.bench.engine import EngineSettings, bench_engine

    settings = EngineSettings(
        batches=batches, prompt_tokens=prompt_tokens, new_tokens=new_tokens, repeats=repeats, threads=threads
    )
    give(bench_engine(resolve_model(model), settings, say=say), json_file)


def run_contests(
    model: Path | None,
    shapes: Sequence[str],
    settings: ContestSettings,
    *,
    cache: Path | None,
    json_file: Path | None,
    plot: Path | None,
) -> None:
    """SystemExit(128 + the signal) after the report of a run that was broken off."""
    from emoe.bench.contest_report import build_report
    from emoe.bench.machine import describe_machine
    from emoe.eval.plots import import_pyplot

    if plot is not None:
        import_pyplot()
    machine = describe_machine(threads=settings.threads)
    with ended_by_signals():
        folders = _folders(model, shapes, cache)
    all_results: list[Results] = []
    broken_off_by = asyncio.run(run_until_broken_off(_contests(folders, all_results, settings, cache)))
    if broken_off_by is not None:
        line = "broken off: these figures are of the turns that were done"
        say(line)
        for results in all_results[-1:]:
            results.notes.append(f"{results.name}: {line}")
    families = " and ".join(dict.fromkeys(_family(folder) for folder in folders.values()))
    report = build_report(all_results, settings, machine=machine, model=", ".join(folders), family=families)
    if report.rows:
        _give(report, json_file, plot)
    else:
        for note in report.notes:
            say(note)
    if broken_off_by is not None:
        raise SystemExit(128 + broken_off_by)


def _folders(model: Path | None, shapes: Sequence[str], cache: Path | None) -> dict[str, Path]:
    from emoe.bench.planted import SHAPES
    from emoe.bench.planted_files import planted_checkpoint
    from emoe.cli.schedule_report import check_names

    if model is not None:
        folder = resolve_model(model)
        return {folder.name: folder}
    check_names(tuple(shapes), SHAPES, "--shape")
    return {name: planted_checkpoint(name, SHAPES[name], cache=cache, say=say) for name in shapes}


async def _contests(
    folders: dict[str, Path], all_results: list[Results], settings: ContestSettings, cache: Path | None
) -> None:
    from emoe.bench.contest import run_contest
    from emoe.bench.contest_prompts import prompts_of
    from emoe.bench.contest_records import Results
    from emoe.bench.peers.places import Places, default_place
    from emoe.store.sidecar import default_cache_dir

    base = cache or default_cache_dir() or Path(tempfile.gettempdir())
    base.mkdir(parents=True, exist_ok=True)
    for name, folder in folders.items():
        say(f"{name}: {folder}")
        results = Results(name=name)
        all_results.append(results)
        with tempfile.TemporaryDirectory(prefix="peers-", dir=base) as work:
            await run_contest(
                folder,
                results,
                settings,
                prompts_of(folder, num_tokens=settings.prompt_tokens),
                work=Path(work),
                places=Places(folder=default_place()),
                say=say,
            )


def _family(folder: Path) -> str:
    from emoe.store.store import ExpertStore

    with ExpertStore.open(folder) as store:
        return store.family


def _give(report: Report, json_file: Path | None, plot: Path | None) -> None:
    from emoe.bench.contest_plot import draw_contest
    from emoe.bench.rows import ContestRow

    give(report, json_file)
    if plot is not None:
        draw_contest([row for row in report.rows if isinstance(row, ContestRow)], plot)
        say(f"drawn in {plot}")
