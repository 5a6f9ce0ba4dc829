"""Runs an evaluation and gives what it found: a table, JSON, a plot."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emoe.cli.bench_report import say
from emoe.cli.eval_table import ablation_table, quality_table, routing_table
from emoe.cli.rows_table import wide_console

if TYPE_CHECKING:
    from rich.table import Table

    from emoe.eval.ablation_lab import AblationSettings
    from emoe.eval.opening import RunOptions
    from emoe.eval.quality import QualitySettings
    from emoe.eval.routing_eval import RoutingSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outputs:
    """Beside the table: `json_file` (- prints JSON in its place) and `plot`, a PNG."""

    json_file: Path | None
    plot: Path | None

    def check(self) -> None:
        """InvalidRequestError for what could not be given after a long run."""
        if self.plot is not None:
            from emoe.eval import figures, plots

            assert figures, "what draws is loaded before the run, not after it"
            plots.import_pyplot()
        for path in (self.json_file, self.plot):
            if path is not None and path != Path("-") and not path.parent.is_dir():
                from emoe.core.errors import InvalidRequestError

                raise InvalidRequestError(f"{path}: there is no folder {path.parent}; make it, or name another")


def run_routing(
    routing: Path, index: Path | None, settings: RoutingSettings, outputs: Outputs, *, num_experts: int | None
) -> None:
    from emoe.eval.recorded import read_recorded
    from emoe.eval.routing_eval import evaluate_routing

    outputs.check()
    say(f"reading {routing}")
    recorded = read_recorded(routing, index, num_experts=num_experts)
    report = evaluate_routing(recorded, settings, name=routing.name, say=say)
    title = (
        f"routing of {report.routing}: {report.num_prompts} answers, {report.num_tokens} tokens judged, "
        f"{report.num_layers} layers of {report.num_experts} experts, {report.top_k} a token"
    )
    _give(dataclasses.asdict(report), title, routing_table(report.rows), (), outputs)
    if outputs.plot is not None:
        from emoe.eval.figures import draw_routing

        draw_routing(report.rows, outputs.plot, title=title)


def run_quality(model: Path, data: Path, settings: QualitySettings, options: RunOptions, outputs: Outputs) -> None:
    """The table has the means of the tasks; JSON every task's row."""
    from emoe.eval.measures import MEAN
    from emoe.eval.run import run_quality as run

    outputs.check()
    report = run(model, data, settings, options, say=say)
    origin = report.origin
    title = (
        f"quality of {model.name} ({origin.family}): {sum(origin.num_rows.values())} answers of "
        f"{len(origin.num_rows)} tasks"
    )
    notes = (f"Means of the tasks; --json has each. Profile: {origin.profile}.", *report.notes)
    table = quality_table([row for row in report.rows if row.task == MEAN], report.summary)
    _give(dataclasses.asdict(report), title, table, notes, outputs)
    if outputs.plot is not None:
        from emoe.eval.figures import draw_quality

        draw_quality(report.rows, outputs.plot, title=title)


def run_ablations(model: Path, data: Path, settings: AblationSettings, options: RunOptions, outputs: Outputs) -> None:
    from emoe.eval.ablation_run import run_ablations as run

    outputs.check()
    report = run(model, data, settings, options, say=say)
    title = f"ablations of {model.name} ({report.origin.family}): {sum(report.origin.num_rows.values())} answers"
    _give(dataclasses.asdict(report), title, ablation_table(report.rows), report.notes, outputs)
    if outputs.plot is not None:
        from emoe.eval.figures import draw_ablations

        draw_ablations(report.rows, outputs.plot, title=title)


def _give(report: dict[str, Any], title: str, table: Table, notes: tuple[str, ...], outputs: Outputs) -> None:
    text = json.dumps(report, indent=1, default=str, allow_nan=False)
    if outputs.json_file == Path("-"):
        print(text)
        return
    console = wide_console()
    console.print(f"[bold]{title}[/]")
    console.print(table)
    for note in notes:
        console.print(note)
    if outputs.json_file is not None:
        outputs.json_file.write_text(text + "\n")
