"""`emoe bench refresh`: its options. Imports stay inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emoe.cli.eval_options import JsonOption, ModelArgument, SeedOption, ThreadsOption
from emoe.cli.reporting import reported_errors

DATA_HELP = "Folder with test/TASK.jsonl[.zst]: lines with prompt and response, a file a task."
INTERVAL_HELP = "The loader's: prompts between two predictions, or auto."


def refresh_command(
    model: ModelArgument = None,
    data: Annotated[Path, typer.Option(help=DATA_HELP, show_default=False)] = ...,  # type: ignore[assignment]  # required
    resident: Annotated[str, typer.Option(help="Expert memory beside all-resident: a share, or a size.")] = "20%",
    clients: Annotated[int, typer.Option(min=1, max=256, help="Requests at once.")] = 8,
    requests: Annotated[int, typer.Option(min=1, help="Requests of a turn, all clients together.")] = 112,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds: in each, every system has its turn.")] = 5,
    refresh_interval_prompts: Annotated[str, typer.Option(help=INTERVAL_HELP)] = "auto",
    calibration: Annotated[
        Path | None,
        typer.Option(help="The file of `emoe profile --calibrate`.", show_default="the one beside the model"),
    ] = None,
    max_context: Annotated[int, typer.Option(min=8, help="Rows of more tokens are left out.")] = 1024,
    threads: ThreadsOption = None,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Speed and perplexity with few resident experts that are changed while requests run, against all resident.

    Starts the four services several times over: with all experts, with few and refresh running, with few and the first
    plan for ever, and calibrated where the model has a calibration. All are up, and take turns with the same requests,
    every task in equal shares.

    Answers are forced to the data's own, token by token, through the whole system: so all systems do the same
    work, and the perplexity is that of the very requests whose speed is measured.

    Quickly: `emoe bench refresh --data DATA --requests 56 --repeats 3`

    Ctrl-C keeps the rounds measured so far.
    """
    from emoe.cli.bench_report import give, say
    from emoe.cli.paths import resolve_model

    with reported_errors():
        from emoe.bench.refresh import RefreshSettings
        from emoe.cli.bench_refresh_run import RefreshRun, find_calibration, run_refresh
        from emoe.runtime.cpus import usable_cpus

        if requests < clients:
            raise typer.BadParameter(f"must be at least the {clients} clients", param_hint="--requests")
        folder = resolve_model(model)
        settings = RefreshSettings(
            resident=resident,
            clients=clients,
            requests=requests,
            repeats=repeats,
            max_context=max_context,
            refresh_interval_prompts=refresh_interval_prompts,
            threads=threads or usable_cpus(),
            seed=seed,
        )
        run = RefreshRun(model=folder, data=data, settings=settings, calibration=find_calibration(folder, calibration))
        give(run_refresh(run, say=say), json_file)
