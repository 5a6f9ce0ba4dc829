"""`emoe bench engine`: tokens a second against memory, beside the peers. Imports stay inside the command."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from emoe.cli.eval_options import JsonOption
from emoe.cli.reporting import reported_errors

MODEL_HELP = "Checkpoint folder as published, asked random tokens. Default: planted models, see --shape."
SHAPE_HELP = (
    "Planted model to make and measure: mix-s (0.8 GB), qwen3-s (0.8 GB), qwen3moe-m (3.8 GB). May be given again."
)
PEERS_HELP = "eager, grouped_mm, disk (transformers), llama.cpp, airllm, separated by commas; or none."
ONE_PROCESS_HELP = "All experts resident, emoe against transformers in one process; no peers, no budgets."
CAP_HELP = (
    "Runs each process in a memory cgroup of that size, page cache included: 800MiB, or 33% of the checkpoint's bytes. "
    "Started anew for each turn; needs the rights to make cgroups (root)."
)
CACHE_HELP = "Keeps planted models, and meanwhile what peers make of them."


def engine_command(
    model: Annotated[Path | None, typer.Argument(help=MODEL_HELP, show_default=False)] = None,
    shape: Annotated[list[str] | None, typer.Option(help=SHAPE_HELP, show_default="mix-s and qwen3-s")] = None,
    budgets: Annotated[str, typer.Option(help="Shares of the experts in memory.")] = "12.5%,25%,50%,100%",
    policies: Annotated[str, typer.Option(help="On a miss: load (exact), reroute (bounded).")] = "load,reroute",
    peers: Annotated[str, typer.Option(help=PEERS_HELP)] = "eager,grouped_mm,disk,llama.cpp,airllm",
    batches: Annotated[
        str | None,
        typer.Option(help="Prompts at once, separated by commas.", show_default="1; with --one-process 1,8,32"),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 128,
    new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of each answer.", show_default="32; with --one-process 48")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Figures are medians of so many.")] = 5,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads for computing.", show_default="what the cgroup allows")
    ] = None,
    memory_cap: Annotated[str | None, typer.Option(metavar="SIZE|SHARE", help=CAP_HELP, show_default="no cap")] = None,
    one_process: Annotated[bool, typer.Option("--one-process", help=ONE_PROCESS_HELP)] = False,
    cache: Annotated[Path | None, typer.Option(help=CACHE_HELP, show_default="the user's cache folder")] = None,
    json_file: JsonOption = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw tokens a second against memory, a panel a model.")
    ] = None,
) -> None:
    """Speed and memory of emoe at each budget and miss policy, against transformers, llama.cpp and AirLLM.

    Planted models have task-like routing: random routers are near uniform, and every policy would tie. All take turns
    with the same prompts, each in a process of its own. `make bench-peers` brings the peers; one that is missing is
    named and left out.

    One model, quickly: `emoe bench engine --shape mix-s --budgets 25%,100% --repeats 3`

    A model larger than memory: `emoe bench engine --shape qwen3moe-m --memory-cap 33% --budgets 12.5%
    --policies load --peers disk,llama.cpp`. A process that the cap kills is named. Python with torch takes some 400 MiB
    of it.

    Ctrl-C and SIGTERM keep what is measured so far, and give its report.
    """
    from emoe.cli.bench_engine_run import run_contests, run_one_process

    with reported_errors():
        if one_process:
            if plot is not None:
                raise typer.BadParameter("draws memory, which --one-process does not measure", param_hint="--plot")
            if memory_cap is not None:
                raise typer.BadParameter("caps processes of their own, not --one-process", param_hint="--memory-cap")
            run_one_process(
                model,
                batches=parse_counts("--batches", batches or "1,8,32"),
                prompt_tokens=prompt_tokens,
                new_tokens=new_tokens or 48,
                repeats=repeats,
                threads=threads,
                json_file=json_file,
            )
            return
        from emoe.bench.contest_records import ContestSettings
        from emoe.bench.contestants import PEERS, POLICIES
        from emoe.runtime.cpus import usable_cpus

        settings = ContestSettings(
            budgets=parse_budgets(budgets),
            policies=parse_names("--policies", policies, POLICIES),
            peers=() if peers == "none" else parse_names("--peers", peers, PEERS),
            batches=parse_counts("--batches", batches or "1"),
            prompt_tokens=prompt_tokens,
            new_tokens=check_new_tokens(new_tokens or 32),
            repeats=repeats,
            threads=threads or usable_cpus(),
            memory_cap=check_memory_cap(memory_cap),
        )
        run_contests(model, shape or ["mix-s", "qwen3-s"], settings, cache=cache, json_file=json_file, plot=plot)


def parse_budgets(text: str) -> tuple[float, ...]:
    """`12.5%,25%` -> shares; typer.BadParameter for anything else."""
    pieces = [piece.strip() for piece in text.split(",")]
    matched = [re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)%", piece, re.ASCII) for piece in pieces]
    shares = tuple(float(match[1]) / 100 for match in matched if match)
    if len(shares) < len(pieces) or not all(0 < share <= 1 for share in shares):
        raise typer.BadParameter(
            f"{text!r} must be shares above 0% up to 100%, separated by commas, as 12.5%,50%", param_hint="--budgets"
        )
    return tuple(dict.fromkeys(shares))


def parse_names(option: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(piece.strip() for piece in text.split(",")))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is unknown; there are {', '.join(known)}", param_hint=option)
    return names


def parse_counts(option: str, text: str) -> tuple[int, ...]:
    """`1,8,32`; typer.BadParameter for anything else."""
    pieces = [piece.strip() for piece in text.split(",")]
    if not all(piece.isascii() and piece.isdigit() and int(piece) for piece in pieces):
        raise typer.BadParameter(f"{text!r} must be counts from 1 up, separated by commas", param_hint=option)
    return tuple(int(piece) for piece in pieces)


def check_memory_cap(text: str | None) -> str | None:
    """As it was; typer.BadParameter for what is no size or share."""
    from emoe.core.memory import parse_memory

    try:
        parse_memory(text or "100%", total_bytes=1 << 40)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--memory-cap") from None
    return text


def check_new_tokens(new_tokens: int) -> int:
    if new_tokens < 2:
        raise typer.BadParameter(f"must be at least 2 to time decoding, not {new_tokens}", param_hint="--new-tokens")
    return new_tokens
