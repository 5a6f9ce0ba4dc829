"""Options that `emoe eval` and `emoe ablate` share, and how their words are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from emoe.cli.shares import parse_shares

MODEL_HELP = "Checkpoint folder as published. Default: the small model that ships."
DATA_HELP = "Folder with train/ and test/, in each TASK.jsonl[.zst]: lines with prompt and response."
SHARES_HELP = "Resident shares of the experts: 25%,40%, or 10%..100% (steps of ten points), or 20%..60%/5%."

ModelArgument = Annotated[Path | None, typer.Argument(help=MODEL_HELP)]
RowsOption = Annotated[int, typer.Option(min=1, help="Rows of each task that are judged, the first of test/.")]
ProfileOption = Annotated[
    str | None,
    typer.Option(
        help="emoe-profile.json to learn from, or none: to learn from rows of train/ instead.",
        show_default="the one beside the model, if it fits; else train/",
    ),
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(help="The file of `emoe profile --calibrate`.", show_default="the one beside the model"),
]
ProfileRowsOption = Annotated[
    int, typer.Option(min=1, help="Rows of each task to learn from where no profile is used, and to retrieve from.")
]
TogetherOption = Annotated[int, typer.Option(min=1, help="Requests that share residents in the mixed load.")]
RefreshOption = Annotated[int, typer.Option(min=1, help="Residents are chosen anew every so many tokens.")]
FirstTokenOption = Annotated[
    bool,
    typer.Option(
        "--first-token-waits",
        help="First tokens wait for residents chosen after their prompts; a worker predicts them in the prefill.",
    ),
]
PlannerOption = Annotated[str, typer.Option(help="What makes residents of demand: global, per-layer or adapmoe.")]
ExpertMemoryOption = Annotated[
    str, typer.Option(help="What experts may take here; a model larger than that is paged from disk.")
]
MaxContextOption = Annotated[int, typer.Option(min=2, help="Rows of more tokens are left out.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Mixes requests, deals folds and labels, draws at random.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads for computing.", show_default="all CPUs")]
JsonOption = Annotated[
    Path | None, typer.Option("--json", help="Write the report there as JSON; - prints it instead of the table.")
]
PlotOption = Annotated[Path | None, typer.Option(help="Draw the figures there, as PNG.", metavar="FILE.png")]


def read_shares(text: str, option: str) -> tuple[float, ...]:
    try:
        return parse_shares(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def check_among(named: Sequence[str], known: Sequence[str], option: str) -> None:
    unknown = sorted(set(named) - set(known))
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)} not known; there are {', '.join(known)}", param_hint=option)


def check_each(named: Sequence[str], parse: Callable[[str], object], option: str) -> None:
    """`parse` raises ValueError for a name that there is not."""
    for name in named:
        try:
            parse(name)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint=option) from error
