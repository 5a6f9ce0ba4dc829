"""`emoe bench schedule` at work: rows as they come, kept when it is stopped, then shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import typer

from emoe.bench.schedule_costs import MeasuredCosts
from emoe.bench.schedule_plot import draw_schedule
from emoe.bench.schedule_run import ScheduleSettings, bench_schedule
from emoe.bench.schedule_scale import ScaleSettings, bench_scale
from emoe.bench.schedule_trace import Workload
from emoe.cli.bench_report import say
from emoe.cli.rows_table import build_table
from emoe.cli.schedule_report import give_rows, schedule_table
from emoe.core.slo import Slo
from emoe.eval.plots import import_pyplot

MARK_HOURS = (1.0, 6.0, 24.0)

Row = TypeVar("Row")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Day:
    num_users: int
    requests_a_user: float
    hours: float
    busy_ratio: float


def run_schedule(
    workloads: Sequence[Workload],
    slos: Mapping[str, Slo],
    settings: ScheduleSettings,
    measured: MeasuredCosts,
    *,
    json_file: Path | None,
    plot: Path | None,
) -> None:
    if plot is not None:
        import_pyplot()
    rows = until_stopped(bench_schedule(workloads, slos, settings, say=say))
    give_rows(schedule_table(rows), rows, settings, measured, json_file)
    if plot is not None and rows:
        draw_schedule(rows, plot, wanted=settings.attainment)


def run_day(
    day: Day,
    workload: Workload,
    slos: Mapping[str, Slo],
    settings: ScheduleSettings,
    measured: MeasuredCosts,
    *,
    json_file: Path | None,
) -> None:
    """typer.BadParameter where it is not said for how many workers, or for more than one policy."""
    if not settings.options.num_workers:
        raise typer.BadParameter("--users needs --workers: how many serve them", param_hint="--workers")
    if len(settings.policies) != 1:
        raise typer.BadParameter("--users takes one policy, since memory is the process's", param_hint="--policy")
    scale = ScaleSettings(
        policy=settings.policies[0],
        num_users=day.num_users,
        requests_a_user=day.requests_a_user,
        hours=day.hours,
        mark_hours=(*(mark for mark in MARK_HOURS if mark < day.hours), day.hours),
        busy_ratio=day.busy_ratio,
        options=settings.options,
        placement=settings.placement,
        seed=settings.seeds[0],
    )
    rows = until_stopped(bench_scale(workload, slos, scale, say=say))
    if rows:
        give_rows(build_table(rows), rows, scale, measured, json_file)


def until_stopped(rows: Iterator[Row]) -> list[Row]:
    """All of them, or on Ctrl-C those that are done."""
    done: list[Row] = []
    try:
        for row in rows:
            done.append(row)
    except KeyboardInterrupt:
        say(f"stopped: {len(done)} rows are done")
    return done
