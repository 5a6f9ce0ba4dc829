"""The report of `emoe bench serve`: tables for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from emoe.bench.serve import ServeOutcome
from emoe.bench.serve_compare import CompareRow, Measured, compare, figures_of, foretell
from emoe.bench.serve_rows import ServeRow, count_failures
from emoe.cli.bench_serve_run import Replay, ServeOptions, ServeRun
from emoe.cli.display import format_ratio
from emoe.cli.rows_table import wide_console

_COLUMNS: Mapping[str, str] = {
    "task": "task",
    "num_requests": "requests",
    "load_rps": "load/s",
    "goodput_rps": "goodput/s",
    "attainment": "in time",
    "ttft_p50_seconds": "TTFT p50",
    "ttft_p99_seconds": "p99",
    "tpot_p50_seconds": "TPOT p50",
    "tpot_p99_seconds": "p99",
    "queue_p50_seconds": "queued p50",
    "num_refused": "refused",
    "num_failed": "failed",
}


def give(run: ServeRun, options: ServeOptions, json_file: Path | None) -> None:
    """Tables on stdout, and JSON in `json_file`; with `-`, JSON alone on stdout."""
    compared = compare_replays(run) if run.measured else ()
    text = json.dumps(describe(run, options, compared), indent=1, allow_nan=False, default=str)
    if json_file == Path("-"):
        print(text)
        return
    console = wide_console()
    for done in run.replays:
        _print_replay(console, done, options)
    if compared:
        _print_comparison(console, run.measured, compared)
    if json_file is not None:
        json_file.write_text(text + "\n")
    sys.stdout.flush()


def compare_replays(run: ServeRun) -> tuple[CompareRow, ...]:
    """Of those that were measured to their end."""
    live, simulated = [], []
    for done, measured in zip(run.replays, run.measured, strict=False):
        workload, outcome = done.load.workload, done.outcome
        live.append(figures_of(workload, outcome.first_token_seconds, outcome.end_seconds, run.slos))
        simulated.append(foretell(workload, run.slos, measured))
    return compare(live, simulated)


def _print_replay(console: Console, done: Replay, options: ServeOptions) -> None:
    outcome = done.outcome
    if not done.rows:
        return
    whole = done.rows[0]
    console.print(
        f"[bold]{whole.trace}[/] at {options.speed:g} of its speed to {options.target.address}: policy {whole.policy}, "
        f"{whole.workers} workers, SLOs times {whole.slo_scale:g}"
    )
    console.print(_table(done.rows))
    for reason, number in count_failures(outcome).items():
        console.print(f"{number} requests ended with {reason}")
    if (num_open := len(outcome.end_seconds) - len(outcome.ended)) > 0:
        console.print(f"stopped: {num_open} of {len(outcome.end_seconds)} had not ended and are not counted")
    console.print(_client_line(outcome, whole))


def _print_comparison(console: Console, measured: Sequence[Measured], compared: Sequence[CompareRow]) -> None:
    front = statistics.median(one.front_seconds for one in measured)
    step = statistics.median(one.costs.prefill_seconds(one.num_idle_tokens) for one in measured)
    console.print(
        f"live against simulated, medians of {len(measured)} replays: a step of {measured[0].num_idle_tokens} tokens "
        f"took {1000 * step:.1f} ms, the services add {1000 * front:.1f} ms to a first token; load average "
        f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs"
    )
    table = Table(box=None, pad_edge=False)
    for heading in ("figure", "live", "least", "most", "simulated", "simulated / live"):
        table.add_column(heading, justify="left" if heading == "figure" else "right", no_wrap=True)
    for row in compared:
        values = (row.live, row.live_least, row.live_most, row.simulated)
        table.add_row(row.figure, *(_cell(row.figure, value) for value in values), _cell("ratio", row.ratio))
    console.print(table)


def _table(rows: Sequence[ServeRow]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name, heading in _COLUMNS.items():
        table.add_column(heading, justify="left" if name == "task" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(name, getattr(row, name)) for name in _COLUMNS))
    return table


def _cell(name: str, value: object) -> str:
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    if value != value:
        return "-"
    if name == "attainment":
        return format_ratio(value)
    if name.endswith("_seconds"):
        return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"
    return f"{value:.3g}"


def _client_line(outcome: ServeOutcome, whole: ServeRow) -> str:
    per_message = 1e6 * outcome.processor_seconds / max(1, outcome.num_messages)
    return (
        f"this client: at most {outcome.most_at_once} requests at once, {1000 * whole.late_p99_seconds:.1f} ms late at "
        f"p99, {outcome.processor_seconds:.1f} s of processor for {outcome.num_messages} messages "
        f"({per_message:.0f} us each)"
    )


def describe(run: ServeRun, options: ServeOptions, compared: Sequence[CompareRow]) -> dict[str, Any]:
    """Rows, and every request: None where it never came to that."""
    return {
        "benchmark": "serve",
        "options": dataclasses.asdict(options),
        "rows": [dataclasses.asdict(row) for done in run.replays for row in done.rows],
        "replays": [_describe_replay(done) for done in run.replays],
        "measured": [dataclasses.asdict(one) | {"front_seconds": one.front_seconds} for one in run.measured],
        "compared": [{name: _known(value) for name, value in dataclasses.asdict(row).items()} for row in compared],
    }


def _describe_replay(done: Replay) -> dict[str, Any]:
    workload, outcome = done.load.workload, done.outcome
    times = ("sent_seconds", "first_token_seconds", "end_seconds", "queue_seconds")
    return {
        "failures": count_failures(outcome),
        "processor_seconds": outcome.processor_seconds,
        "num_messages": outcome.num_messages,
        "most_at_once": outcome.most_at_once,
        "requests": {
            "task": workload.tasks,
            "prompt_tokens": workload.prompt_tokens,
            "answer_tokens": workload.answer_tokens,
            "arrived_seconds": workload.arrived_seconds,
            **{name: [_known(value) for value in getattr(outcome, name)] for name in times},
            "failure": [outcome.failures.get(number) for number in range(len(workload))],
        },
    }


def _known(value: Any) -> Any:
    return None if value != value else value
