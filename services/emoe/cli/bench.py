"""`emoe bench ...`: the options of each benchmark. Imports stay inside the commands, as in `commands`."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emoe.cli.bench_claims import claims_command
from emoe.cli.bench_costs import costs_command
from emoe.cli.bench_engine import engine_command, parse_counts
from emoe.cli.bench_refresh import refresh_command
from emoe.cli.bench_schedule import schedule_command
from emoe.cli.bench_serve import bench_serve_command
from emoe.cli.bench_transfer import transfer_command
from emoe.cli.reporting import reported_errors

if TYPE_CHECKING:
    from emoe.bench.planning import ModelShape

bench_app = typer.Typer(help="Measure emoe on this machine, against transformers where it can.", no_args_is_help=True)
bench_app.command("engine")(engine_command)
bench_app.command("claims")(claims_command)
bench_app.command("refresh")(refresh_command)
bench_app.command("serve")(bench_serve_command)
bench_app.command("schedule")(schedule_command)
bench_app.command("costs")(costs_command)
bench_app.command("transfer")(transfer_command)

ModelArgument = Annotated[
    Path | None, typer.Argument(help="Checkpoint folder as published. Default: the small model that ships.")
]
PromptTokensOption = Annotated[int, typer.Option(min=1, help="Random tokens of each prompt.")]
NewTokensOption = Annotated[int, typer.Option(min=1, help="Tokens of each answer.")]
RepeatsOption = Annotated[int, typer.Option(min=1, help="Figures are medians of so many.")]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Threads for computing.", show_default="what the cgroup allows")
]
JsonFileOption = Annotated[
    Path | None, typer.Option("--json", help="Write the report there as JSON; - prints it instead of the table.")
]


@bench_app.command()
def memory(
    model: ModelArgument = None,
    budgets: Annotated[str, typer.Option(help="Expert memory of each row, separated by commas.")] = "100%,50%,25%",
    prompt_tokens: PromptTokensOption = 128,
    new_tokens: NewTokensOption = 32,
    threads: ThreadsOption = None,
    json_file: JsonFileOption = None,
) -> None:
    """Peak anonymous memory in exact mode at each budget, against transformers; a process each."""
    from emoe.cli.bench_report import give, say
    from emoe.cli.paths import resolve_model

    with reported_errors():
        from emoe.bench.memory import MemorySettings, bench_memory

        settings = MemorySettings(
            budgets=tuple(piece.strip() for piece in budgets.split(",")),
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            threads=threads,
        )
        give(asyncio.run(bench_memory(resolve_model(model), settings, say=say)), json_file)


@bench_app.command()
def reads(
    model: ModelArgument = None,
    tokens: Annotated[int, typer.Option(min=1, max=32, help="Tokens to decode, each of them cold.")] = 3,
    threads: ThreadsOption = None,
    json_file: JsonFileOption = None,
) -> None:
    """Bytes that a cold token reads, against those of the experts that it needs."""
    from emoe.cli.bench_report import give, say
    from emoe.cli.paths import resolve_model

    with reported_errors():
        from emoe.bench.reads import ReadSettings, bench_reads

        settings = ReadSettings(num_tokens=tokens, threads=threads)
        give(bench_reads(resolve_model(model), settings, say=say), json_file)


@bench_app.command()
def services(
    model: ModelArgument = None,
    clients: Annotated[str, typer.Option(help="Clients at once, separated by commas.")] = "1,16",
    prompt_tokens: PromptTokensOption = 128,
    new_tokens: NewTokensOption = 64,
    requests: Annotated[int, typer.Option(min=1, help="Requests of each client in a repeat.")] = 3,
    repeats: RepeatsOption = 5,
    threads: ThreadsOption = None,
    json_file: JsonFileOption = None,
) -> None:
    """Tokens a second and TTFT through the four services, against the engine in a process of its own."""
    from emoe.cli.bench_report import give, say
    from emoe.cli.paths import resolve_model

    with reported_errors():
        from emoe.bench.services import ServiceSettings
        from emoe.cli.bench_services import run_services

        settings = ServiceSettings(
            clients=parse_counts("--clients", clients),
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            requests_per_client=requests,
            repeats=repeats,
            threads=threads,
        )
        give(run_services(resolve_model(model), settings, say=say), json_file)


@bench_app.command()
def planning(
    model: ModelArgument = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LxE[/K]",
            help="Layers x experts of each, K chosen by a token (2); may be given again. Instead of the known shapes.",
        ),
    ] = None,
    resident: Annotated[float, typer.Option(min=0.01, max=1, help="Share of the experts that plans choose.")] = 0.25,
    repeats: Annotated[int, typer.Option(min=1, help="Calls of each step that are clocked.")] = 200,
    json_file: JsonFileOption = None,
) -> None:
    """Time of one prediction and of one plan, on one thread: for Mixtral's and Qwen3's shapes, and the model's own."""
    from emoe.cli.bench_report import give, say
    from emoe.cli.paths import resolve_model

    with reported_errors():
        from emoe.bench.planning import KNOWN_SHAPES, PlanningSettings, bench_planning, shape_of
        from emoe.store.store import ExpertStore

        shapes = parse_shapes(shape or [])
        if not shapes or model is not None:
            folder = resolve_model(model)
            with ExpertStore.open(folder) as store:
                shapes += (*(() if shapes else KNOWN_SHAPES), shape_of(store.grid, folder.name))
        settings = PlanningSettings(shapes=shapes, resident_ratio=resident, repeats=repeats)
        give(asyncio.run(bench_planning(settings, say=say)), json_file)


@bench_app.command()
def decisions(
    policy: Annotated[
        list[str] | None, typer.Option(help="May be given again.", show_default="every one that there is")
    ] = None,
    queued: Annotated[str, typer.Option(help="Requests that wait, separated by commas.")] = "10000",
    workers: Annotated[str, typer.Option(help="Workers, separated by commas.")] = "100",
    running: Annotated[int, typer.Option(min=1, help="Requests that run on each worker.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Decisions that are clocked.")] = 20_000,
    json_file: JsonFileOption = None,
) -> None:
    """Time of one admit-and-place of the scheduler, on one core: with long queues and many workers.

    Each has all that goes with it: a request that ends, one that arrives, first tokens, progress, workers' reports.
    """
    from emoe.cli.bench_report import give, say

    with reported_errors():
        from emoe.bench.decisions import DecisionSettings, Load, bench_decisions
        from emoe.cli.schedule_report import check_names
        from emoe.core.schedule.policies import POLICIES

        names = tuple(policy or POLICIES)
        check_names(names, POLICIES, "--policy")
        loads = tuple(
            Load(num_queued=num_queued, num_workers=num_workers, num_running=running)
            for num_queued in parse_counts("--queued", queued)
            for num_workers in parse_counts("--workers", workers)
        )
        give(bench_decisions(DecisionSettings(policies=names, loads=loads, decisions=repeats), say=say), json_file)


def parse_shapes(texts: list[str]) -> tuple[ModelShape, ...]:
    """`48x128/8`; typer.BadParameter for anything else."""
    from emoe.bench.planning import ModelShape

    shapes = []
    for text in texts:
        matched = re.fullmatch(r"([1-9][0-9]{0,2})x([1-9][0-9]{0,3})(?:/([1-9][0-9]{0,2}))?", text, re.ASCII)
        num_layers, num_experts, top_k = (int(part or 2) for part in matched.groups()) if matched else (0, 0, 1)
        if top_k > num_experts:
            raise typer.BadParameter(
                f"{text!r} must be layers x experts, as 32x8 or 48x128/8: with K of the experts chosen by a token",
                param_hint="--shape",
            )
        shapes.append(ModelShape(name=text, num_layers=num_layers, num_experts=num_experts, top_k=top_k))
    return tuple(shapes)
