"""`emoe replay`: a recorded stream of requests through the real services. Imports stay inside the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from emoe.cli.eval_options import DATA_HELP, SHARES_HELP, JsonOption, SeedOption, check_among, read_shares
from emoe.cli.failures import CommandError
from emoe.cli.reporting import reported_errors

MAX_WORKERS = 64
TRACE_HELP = "CSV or CSV.gz with arrival_s, task, output_tokens and corpus_id, the `id` of a row in the data's test/."
STRATEGY_HELP = (
    "May be given again: global-frequency, task-frequency, task-frequency-shuffled, task-identified (requests name no "
    "task), emoe, emoe-shuffled, emoe-calibrated."
)


def replay_command(
    trace: Annotated[Path, typer.Argument(help=TRACE_HELP)],
    data: Annotated[Path, typer.Option(help=DATA_HELP)],
    model: Annotated[
        Path | None, typer.Option("--model", help="Checkpoint folder. Default: the small model that ships.")
    ] = None,
    resident: Annotated[str, typer.Option(help=SHARES_HELP)] = "25%",
    strategy: Annotated[list[str] | None, typer.Option(help=STRATEGY_HELP, show_default="all")] = None,
    begin: Annotated[float, typer.Option(min=0, help="Second of the trace to begin at.")] = 0.0,
    requests: Annotated[int, typer.Option(min=1, help="So many requests from there on.")] = 300,
    speed: Annotated[
        float, typer.Option(min=0.001, help="Of the trace's time: 0.2 takes five times as long as recorded.")
    ] = 0.2,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longer answers are cut.")] = 128,
    max_concurrency: Annotated[int, typer.Option(min=1, help="Requests that run at once on a worker.")] = 8,
    workers: Annotated[str, typer.Option(help="How many workers; several numbers (2,4,8) are replayed in turn.")] = "1",
    placement: Annotated[
        list[str] | None,
        typer.Option(
            help="On which worker a request runs: most-free, least-wait or residency. May be given again.",
            show_default="the policy's own",
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="Which request runs next: fifo, shortest, edf, emoe or ontime.", show_default="ontime"),
    ] = None,
    windows: Annotated[int, typer.Option(min=1, help="Stretches of time with rows of their own.")] = 6,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Replays a recorded stream of requests, its task mix changing, through scheduler, loader, predictor and worker.

    The services are started anew for each strategy, share, number of workers and placement, on the model that ships or
    one of yours, and each request is sent at its recorded time. Shown are hit ratio, bytes moved and times to the first
    token: of all, of each task, and of stretches of time, so that it can be seen how residents follow the mix. Of the
    cluster: the share of demand that any worker's residents cover, that of the workers to which requests were sent,
    and how many experts are resident somewhere.
    """
    with reported_errors():
        from emoe.cli.bench_report import say
        from emoe.cli.eval_table import replay_table
        from emoe.cli.paths import resolve_model
        from emoe.cli.replay_run import STRATEGIES, ReplayOptions, run_replay
        from emoe.cli.rows_table import wide_console
        from emoe.core.schedule.placement import PLACEMENTS
        from emoe.eval.rows import read_rows
        from emoe.eval.trace import Window, read_arrivals

        names = tuple(strategy or STRATEGIES)
        check_among(names, tuple(STRATEGIES), "--strategy")
        check_among(placement or (), tuple(PLACEMENTS), "--placement")
        window = Window(begin_seconds=begin, num_requests=requests, speed=speed, max_tokens=max_tokens)
        arrivals = read_arrivals(trace, read_rows(data, "test"), window)
        options = ReplayOptions(
            model=resolve_model(model),
            strategies=names,
            resident_ratios=read_shares(resident, "--resident"),
            num_windows=windows,
            max_concurrency=max_concurrency,
            num_workers=_read_counts(workers),
            placements=tuple(placement or ("",)),
            policy=policy or "",
            seed=seed,
        )
        rows = run_replay(arrivals, options, say=say)
        report = {
            "trace": trace.name,
            "window": dataclasses.asdict(window),
            "options": dataclasses.asdict(options),
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        text = json.dumps(report, indent=1, default=str, allow_nan=False)
        if json_file == Path("-"):
            print(text)
            return
        console = wide_console()
        console.print(f"[bold]replay of {trace.name}[/]: {len(arrivals)} requests, {arrivals[-1].at_seconds:.0f} s")
        console.print(replay_table(rows))
        if json_file is not None:
            json_file.write_text(text + "\n")


def _read_counts(text: str) -> tuple[int, ...]:
    """CommandError for anything but numbers of workers, with commas between them."""
    counts = tuple(int(part) if part.strip().isdecimal() else 0 for part in text.split(","))
    if not all(0 < count <= MAX_WORKERS for count in counts):
        raise CommandError(f"--workers {text!r}: must be numbers from 1 to {MAX_WORKERS}, such as 2,4,8")
    return counts
