"""The process side of `emoe bench refresh`: which systems there are, and their lives."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from emoe.bench.machine import describe_machine
from emoe.bench.refresh import ALL_RESIDENT, CALIBRATED, REFRESH, STATIC, RefreshBench, RefreshSettings, Served
from emoe.bench.refresh_answers import write_answers
from emoe.bench.refresh_load import Ask, read_turns
from emoe.bench.rows import Report
from emoe.cli.bench_refresh_system import forced_system
from emoe.cli.failures import CommandError
from emoe.cli.signals import run_until_signalled
from emoe.cli.system import SystemOptions, require_worker_extra
from emoe.store.profile import CALIBRATION_FILE
from emoe.store.store import ExpertStore

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefreshRun:
    """`calibration`: None where there is none to try."""

    model: Path
    data: Path
    settings: RefreshSettings
    calibration: Path | None


def run_refresh(run: RefreshRun, *, say: Say) -> Report:
    """Also after Ctrl-C, with the whole rounds until then. CommandError when there is none."""
    require_worker_extra()
    settings = run.settings
    machine = describe_machine(threads=settings.threads)
    with ExpertStore.open(run.model) as store:
        family = store.family
        say("reading rows")
        turns = read_turns(
            store,
            run.data,
            num_turns=settings.repeats + 1,
            num_requests=settings.requests,
            max_context=settings.max_context,
            seed=settings.seed,
        )
    benches: list[RefreshBench] = []
    with tempfile.TemporaryDirectory(prefix="emoe-bench-") as folder:
        work = measure(run, variants(run), turns, Path(folder), benches.append, say=say)
        asyncio.run(run_until_signalled(work))
    rows = benches[0].rows() if benches else ()
    if not rows:
        raise CommandError("the benchmark was stopped before a round was whole; there is nothing to show")
    return Report(
        benchmark="refresh",
        model=str(run.model),
        family=family,
        machine=machine,
        settings=dataclasses.asdict(settings),
        rows=rows,
        notes=tuple(_notes(run, num_rounds=len(rows[0].samples))),
    )


async def measure(
    run: RefreshRun,
    names: Sequence[str],
    turns: list[list[Ask]],
    folder: Path,
    on_bench: Callable[[RefreshBench], None],
    *,
    say: Say,
) -> None:
    """`folder` is empty and ours; `on_bench` gets what fills with samples from then on."""
    answers = folder / "answers.json"
    asks = sorted((ask for turn in turns for ask in turn), key=lambda ask: ask.number)
    write_answers(answers, [ask.answer for ask in asks])
    async with contextlib.AsyncExitStack() as stack:
        systems: list[Served] = []
        for variant in names:
            say(f"starting {variant}")
            systems.append(await stack.enter_async_context(_system(run, variant, folder, answers)))
        bench = RefreshBench(run.settings, systems, say=say)
        on_bench(bench)
        await bench.run(turns)


def variants(run: RefreshRun) -> tuple[str, ...]:
    return (ALL_RESIDENT, REFRESH, *((CALIBRATED,) if run.calibration else ()), STATIC)


def _system(
    run: RefreshRun, variant: str, folder: Path, answers: Path
) -> contextlib.AbstractAsyncContextManager[Served]:
    settings = run.settings
    resident = "100%" if variant == ALL_RESIDENT else settings.resident
    options = SystemOptions(
        model=run.model,
        state_dir=folder / variant,
        listen="127.0.0.1:0",
        loader={"refresh-interval-prompts": settings.refresh_interval_prompts},
        worker={
            "miss-policy": "reroute",
            "expert-memory": resident,
            "calibration": str(run.calibration) if variant == CALIBRATED else "off",
            "max-context": str(settings.max_context),
            "max-concurrency": str(settings.clients),
            "threads": str(settings.threads),
        },
    )
    return forced_system(variant, resident, options, answers, keeps_first_plan=variant == STATIC)


def find_calibration(model: Path, given: Path | None) -> Path | None:
    """CommandError for one that was asked for and is not there."""
    if given is not None and not given.is_file():
        raise CommandError(f"{given}: there is no such calibration; make it with `emoe profile --calibrate`")
    beside = model / CALIBRATION_FILE
    return given or (beside if beside.is_file() else None)


def _notes(run: RefreshRun, *, num_rounds: int) -> list[str]:
    notes = []
    if num_rounds < run.settings.repeats:
        notes.append(f"stopped after {num_rounds} of {run.settings.repeats} rounds")
    if run.calibration is None:
        notes.append(f"{CALIBRATED} not measured: the model has no {CALIBRATION_FILE} beside it; give --calibration")
    return notes
