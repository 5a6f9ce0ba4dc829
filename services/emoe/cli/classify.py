"""`emoe classify`: which task the scheduler would take a prompt for. Imports stay inside the command."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emoe.cli.reporting import reported_errors

if TYPE_CHECKING:
    from emoe.core.task_naming import NamedTask

_SHOWN_CHARACTERS = 60


def classify_command(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            help="Prompts, each quoted. None, or -: what stands in standard input is one.", metavar="PROMPT"
        ),
    ] = None,
    tasks_file: Annotated[
        Path | None,
        typer.Option(help='Tasks of your own, as JSON: {"tickets": ["an example prompt", ...]}.'),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Say which task a request without one would be taken for: by your examples, else by the classifier.

    Try examples here before they go into a MoEDeployment (spec.tasks[].examples) or to emoe serve scheduler
    (--tasks-file).
    """
    with reported_errors(as_json=as_json):
        texts = [sys.stdin.read() if text == "-" else text for text in prompts or ["-"]]
        named = _name(texts, tasks_file)
        if as_json:
            rows = [{"prompt": text, **dataclasses.asdict(one)} for text, one in zip(texts, named, strict=True)]
            print(json.dumps({"prompts": rows}))
        else:
            _print_table(texts, named)


def _name(texts: list[str], tasks_file: Path | None) -> list[NamedTask]:
    from emoe.cli.failures import CommandError
    from emoe.core.task_naming import shipped_namer
    from emoe.scheduler.settings import read_task_examples

    try:
        namer = shipped_namer(read_task_examples(tasks_file) if tasks_file else None)
    except ValueError as error:
        raise CommandError(str(error)) from error
    return [namer.name(text) for text in texts]


def _print_table(texts: list[str], named: list[NamedTask]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("task", "named by", "likeliest", "prompt"):
        table.add_column(heading, no_wrap=heading == "prompt")
    for text, one in zip(texts, named, strict=True):
        by = one.by if one.similarity is None else f"{one.by} ({one.similarity:.2f} alike)"
        likeliest = f"{one.likeliest} {one.probability:.1%}"
        table.add_row(
            one.task, by, likeliest, Text(" ".join(text[: 4 * _SHOWN_CHARACTERS].split())[:_SHOWN_CHARACTERS])
        )
    Console(highlight=False).print(table)
