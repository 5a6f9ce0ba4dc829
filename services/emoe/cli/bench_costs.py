"""`emoe bench costs`: a worker's step costs on this machine, for `emoe bench schedule`. Imports stay inside."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from emoe.cli.reporting import reported_errors


def costs_command(
    model: Annotated[
        Path | None, typer.Argument(help="Checkpoint folder as published. Default: the small model that ships.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long to measure.")] = 60.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Sequences at once, at most.")] = 8,
    max_context: Annotated[int, typer.Option(min=128, help="Of prompt and answer together.")] = 2048,
    expert_memory: Annotated[str, typer.Option(help="A share of the experts or a size.")] = "100%",
    miss_policy: Annotated[str, typer.Option(help="reroute, or load: then also what a miss costs.")] = "reroute",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads for computing.", show_default="what the cgroup allows")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws the load.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the costs there, for `bench schedule --costs`.")
    ] = None,
) -> None:
    """What a step of a real engine takes: a fixed part, and one for each kind of token in it.

    A random load runs for a while; the costs are fitted to it as a worker fits its own. Nothing else should run.
    """
    with reported_errors():
        from emoe.bench.measure_costs import CostSettings, measure_costs
        from emoe.bench.schedule_costs import write_costs
        from emoe.cli.bench_report import say
        from emoe.cli.paths import resolve_model

        if miss_policy not in ("reroute", "load"):
            raise typer.BadParameter(f"{miss_policy!r} is neither reroute nor load", param_hint="--miss-policy")
        settings = CostSettings(
            seconds=seconds,
            max_concurrency=concurrency,
            max_context=max_context,
            expert_memory=expert_memory,
            miss_policy=miss_policy,
            threads=threads,
            seed=seed,
        )
        measured = measure_costs(resolve_model(model), settings, say=say)
        if json_file is not None and json_file != Path("-"):
            write_costs(measured, json_file)
        print(json.dumps(dataclasses.asdict(measured), indent=1))
