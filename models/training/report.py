"""The result of an evaluation: typed, as JSON, as a plain table, and as the tables of models/README.md."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any

from metrics import ExactMatch

QUARTER_EXPLAINED = (
    "A quarter of each layer's experts, chosen by the routing of one half of the rows and judged on the other half, "
    "both ways: by the task's own routing, or by that of all tasks with equal weight. "
    "First the share of expert choices that such a quarter covers; then the factor by which perplexity grows, on "
    "responses and on all tokens, when no other experts are resident and tokens are rerouted among them."
)
BEGIN, END = "<!-- evaluation:begin -->", "<!-- evaluation:end -->"


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuarterResult:
    """A quarter of each layer's experts: the share of held-out choices that it covers, and what it costs when the
    router has no other experts: perplexity over that with all experts."""

    coverage: float
    response_factor: float
    factor: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskResult:
    rows: int
    tokens: int
    response_perplexity: float
    perplexity: float
    own_quarter: QuarterResult
    global_quarter: QuarterResult


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    model: str
    split: str
    parameters: int
    routed_share: float
    checkpoint_bytes: int
    training: Mapping[str, Any] | None
    tasks: Mapping[str, TaskResult]
    classification: ExactMatch
    subtasks: Mapping[str, ExactMatch]


def write_json(evaluation: Evaluation, path: Path) -> None:
    path.write_text(json.dumps(dataclasses.asdict(evaluation), indent=2) + "\n")


def read_json(path: Path) -> Evaluation:
    raw = json.loads(path.read_text())
    raw["tasks"] = {task: _task_result(result) for task, result in raw["tasks"].items()}
    raw["classification"] = ExactMatch(**raw["classification"])
    raw["subtasks"] = {subtask: ExactMatch(**result) for subtask, result in raw["subtasks"].items()}
    return Evaluation(**raw)


def _task_result(raw: dict[str, Any]) -> TaskResult:
    quarters = {field: QuarterResult(**raw[field]) for field in ("own_quarter", "global_quarter")}
    return TaskResult(**{**raw, **quarters})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    pattern: str
    value: Callable[[TaskResult], float]
    over_tasks: Callable[[list[float]], float]


def _count(value: Callable[[TaskResult], int]) -> Column:
    return Column(pattern="{:,}", value=value, over_tasks=sum)


def _share(value: Callable[[TaskResult], float]) -> Column:
    return Column(pattern="{:.3f}", value=value, over_tasks=fmean)


def _perplexity(value: Callable[[TaskResult], float]) -> Column:
    """Of a perplexity or a factor of one."""
    return Column(pattern="{:.2f}", value=value, over_tasks=geometric_mean)


def language_cells(evaluation: Evaluation) -> list[list[str]]:
    heads = ["task", "rows", "tokens", "perplexity of responses", "perplexity of all tokens"]
    columns = [
        _count(lambda task: task.rows),
        _count(lambda task: task.tokens),
        _perplexity(lambda task: task.response_perplexity),
        _perplexity(lambda task: task.perplexity),
    ]
    return [heads, *_rows(evaluation, columns)]


def routing_cells(evaluation: Evaluation) -> list[list[str]]:
    heads = ["task", "covered: own", "global", "responses: own", "global", "all tokens: own", "global"]
    columns = [
        _share(lambda task: task.own_quarter.coverage),
        _share(lambda task: task.global_quarter.coverage),
        _perplexity(lambda task: task.own_quarter.response_factor),
        _perplexity(lambda task: task.global_quarter.response_factor),
        _perplexity(lambda task: task.own_quarter.factor),
        _perplexity(lambda task: task.global_quarter.factor),
    ]
    return [heads, *_rows(evaluation, columns)]


def _rows(evaluation: Evaluation, columns: Sequence[Column]) -> list[list[str]]:
    results = list(evaluation.tasks.values())
    cells = [
        [task, *(column.pattern.format(column.value(result)) for column in columns)]
        for task, result in evaluation.tasks.items()
    ]
    last = [column.pattern.format(column.over_tasks([column.value(r) for r in results])) for column in columns]
    return [*cells, ["all tasks", *last]]


def classification_cells(evaluation: Evaluation) -> list[list[str]]:
    parts = {**evaluation.subtasks, "all": evaluation.classification}
    cells = [[name, f"{part.rows:,}", f"{part.exact_match:.1%}", f"{part.chance:.1%}"] for name, part in parts.items()]
    return [["classification", "rows", "exact match", "best constant answer"], *cells]


def plain_table(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = []
    for row in cells:
        first, *others = (cell.ljust(width) if column == 0 else cell.rjust(width)
                          for column, (cell, width) in enumerate(zip(row, widths, strict=True)))  # fmt: skip
        lines.append("  ".join([first, *others]))
    return "\n".join(lines)


def markdown_table(cells: Sequence[Sequence[str]]) -> str:
    head, *body = ("| " + " | ".join(row) + " |" for row in cells)
    rule = "| --- |" + " ---: |" * (len(cells[0]) - 1)
    return "\n".join([head, rule, *body])


def update_readme(readme: Path, evaluation: Evaluation) -> None:
    """Replaces what stands between the two markers; ValueError if they are not there."""
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{readme} lacks the lines {BEGIN} and {END}: put them where the tables belong")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    readme.write_text(f"{before}{BEGIN}\n{_readme_section(evaluation)}\n{END}{after}")


def _readme_section(evaluation: Evaluation) -> str:
    size = (
        f"{evaluation.parameters / 1e6:.2f} M parameters, {evaluation.routed_share:.0%} of them in routed experts; "
        f"{evaluation.checkpoint_bytes / 1e6:.1f} MB of weights on disk."
    )
    trained = ""
    if evaluation.training:
        trained = (
            f" Trained on {evaluation.training['tokens'] / 1e6:.1f} M tokens in {evaluation.training['step']:,} steps "
            f"({evaluation.training['seconds'] / 60:.0f} minutes), lastly with "
            f"`--absence {evaluation.training['recipe']['absence']}`."
        )
    return "\n\n".join([
        size + trained,
        f"Held-out perplexity (`{evaluation.split}` split, float32):",
        markdown_table(language_cells(evaluation)),
        "Classification, greedy answers compared without regard to case:",
        markdown_table(classification_cells(evaluation)),
        f"Routing. {QUARTER_EXPLAINED}",
        markdown_table(routing_cells(evaluation)),
    ])  # fmt: skip
