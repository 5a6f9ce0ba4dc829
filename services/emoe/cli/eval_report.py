"""Runs an evaluation and prints what it found, as a table or as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emoe.cli.bench_report import say
from emoe.cli.rows_table import build_table, wide_console

if TYPE_CHECKING:
    from emoe.eval.quality import QualitySettings
    from emoe.eval.routing_eval import RoutingSettings
    from emoe.eval.run import RunOptions


def run_routing(
    routing: Path, index: Path | None, settings: RoutingSettings, *, num_experts: int | None, json_file: Path | None
) -> None:
    from emoe.eval.recorded import read_recorded
    from emoe.eval.routing_eval import evaluate_routing

    say(f"reading {routing}")
    recorded = read_recorded(routing, index, num_experts=num_experts)
    report = evaluate_routing(recorded, settings, name=routing.name, say=say)
    title = (
        f"[bold]routing[/] of {report.routing}: {report.num_prompts} answers, {report.num_tokens} tokens judged, "
        f"{report.num_layers} layers of {report.num_experts} experts, {report.top_k} a token"
    )
    _give(dataclasses.asdict(report), title, report.rows, json_file)


def run_quality(
    model: Path, data: Path, settings: QualitySettings, options: RunOptions, json_file: Path | None
) -> None:
    """The table has the means of the tasks; JSON every task's row."""
    from emoe.eval.quality import MEAN
    from emoe.eval.run import run_quality as run

    report = run(model, data, settings, options, say=say)
    title = (
        f"[bold]quality[/] of {model.name} ({report.family}): {sum(report.num_rows.values())} answers of "
        f"{len(report.num_rows)} tasks; means of the tasks (--json has each)"
    )
    _give(dataclasses.asdict(report), title, [row for row in report.rows if row.task == MEAN], json_file)


def _give(report: dict[str, Any], title: str, rows: Sequence[object], json_file: Path | None) -> None:
    text = json.dumps(report, indent=1)
    if json_file == Path("-"):
        print(text)
        return
    console = wide_console()
    console.print(title)
    console.print(build_table(rows))
    if json_file is not None:
        json_file.write_text(text + "\n")
