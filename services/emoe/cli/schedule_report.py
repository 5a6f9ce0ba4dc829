"""Words of `emoe bench schedule` read, and its rows shown, for people and for programs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

if TYPE_CHECKING:
    from emoe.bench.schedule_costs import MeasuredCosts
    from emoe.bench.schedule_rows import ScheduleRow
    from emoe.bench.simulate_residency import ResidencyModel

MEASURED = "measured"


def parse_numbers(option: str, text: str | None) -> tuple[float, ...]:
    """`1,2.5`; typer.BadParameter for anything else."""
    try:
        numbers = tuple(float(piece) for piece in text.split(",")) if text is not None else ()
    except ValueError:
        numbers = (math.nan,)
    if not all(0 < number < math.inf for number in numbers):
        raise typer.BadParameter(f"{text!r} must be numbers above 0, separated by commas", param_hint=option)
    return numbers


def check_names(names: Sequence[str], known: Iterable[str], option: str) -> None:
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"there is no {name!r}; there are {', '.join(sorted(known))}", param_hint=option)


def parse_residency(text: str | None) -> ResidencyModel | None:
    """`0.5:0.9`; typer.BadParameter for anything else."""
    from emoe.bench.simulate_residency import ResidencyModel

    if text is None:
        return None
    try:
        shared, alone = (float(piece) for piece in text.split(":"))
    except ValueError:
        shared, alone = math.nan, math.nan
    if not 0 <= shared <= alone <= 1:
        raise typer.BadParameter(f"{text!r} must be two shares, as 0.5:0.9", param_hint="--residency")
    return ResidencyModel(shared=shared, alone=alone)


def read_chosen_costs(text: str) -> MeasuredCosts:
    from emoe.bench.schedule_costs import read_costs

    return read_costs() if text == MEASURED else read_costs(Path(text))


def give_rows(
    table: Table, rows: Sequence[Any], settings: Any, measured: MeasuredCosts, json_file: Path | None
) -> None:
    """The table on stdout, and JSON in `json_file`; with `-`, JSON alone on stdout."""
    from emoe.cli.rows_table import wide_console

    report = {
        "benchmark": "schedule",
        "settings": dataclasses.asdict(settings),
        "costs": dataclasses.asdict(measured),
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    text = json.dumps(_without_nan(report), indent=1, default=str, allow_nan=False)
    if json_file == Path("-"):
        print(text)
        return
    console = wide_console()
    each = measured.costs
    console.print(
        f"[bold]schedule[/], simulated; a step takes {each.base_seconds * 1e3:.2f} ms, a prompt token "
        f"{each.prompt_token_seconds * 1e6:.1f} us, a decoding sequence {each.sequence_seconds * 1e3:.2f} ms more "
        f"({measured.model} on {measured.machine.cpu}, {measured.machine.threads} threads)"
    )
    console.print(table)
    if json_file is not None:
        json_file.write_text(text + "\n", encoding="utf-8")


def schedule_table(rows: Sequence[ScheduleRow]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("trace", "policy"):
        table.add_column(name)
    names = ("workers", "SLO x", "load/s", "goodput/s", "in time", "TTFT p50", "p99", "TPOT p99", "decision p99")
    for name in (*names, "coverage", "requests", "refused", "seeds", "simulated/s"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.trace,
            row.policy,
            str(row.workers),
            f"{row.slo_scale:g}",
            f"{row.load_rps:.2f}",
            f"{row.goodput_rps:.2f}",
            f"{row.attainment:.2%}",
            *(f"{seconds * 1e3:.0f} ms" for seconds in (row.ttft_p50_seconds, row.ttft_p99_seconds)),
            f"{row.tpot_p99_seconds * 1e3:.1f} ms",
            f"{row.decision_p99_seconds * 1e6:.0f} us",
            "-" if row.coverage is None else f"{row.coverage:.3f}",
            str(row.num_requests),
            str(row.num_refused),
            str(row.seeds),
            f"{row.simulated_rps:.0f}",
        )
    return table


def _without_nan(value: Any) -> Any:
    """JSON has no word for a figure that there is none of."""
    if isinstance(value, Mapping):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
