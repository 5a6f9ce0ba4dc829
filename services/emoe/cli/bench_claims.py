"""`emoe bench claims`: the paper's claims at one memory cap. Imports stay inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emoe.cli.bench_engine import check_new_tokens, parse_budgets, parse_names
from emoe.cli.eval_options import JsonOption
from emoe.cli.reporting import reported_errors

MODEL_HELP = "Checkpoint folder as published, asked random tokens. Default: the planted model mix-s (0.8 GB)."
CAP_HELP = "What both may take: 2GiB, 900MB. Default: the least at which all experts resident serve, and the slack."
MAX_PROMPT_HELP = "Longest prompt to try; above the model's positions its answers mean nothing, memory does."
PROBE_HELP = "A probe that takes longer counts as one that does not fit; the report says so."


def claims_command(
    model: Annotated[Path | None, typer.Argument(help=MODEL_HELP, show_default=False)] = None,
    memory_cap: Annotated[str | None, typer.Option(metavar="SIZE", help=CAP_HELP, show_default=False)] = None,
    slack: Annotated[float, typer.Option(min=0, max=1, help="Of the cap that is found.")] = 0.005,
    budget: Annotated[str, typer.Option(help="Share of the experts that emoe keeps in memory.")] = "25%",
    policies: Annotated[str, typer.Option(help="On a miss: load (exact), reroute (bounded).")] = "reroute,load",
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 32,
    max_prompt: Annotated[
        int | None, typer.Option(min=1, help=MAX_PROMPT_HELP, show_default="the model's positions")
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Most prompts at once to try.")] = 256,
    precision: Annotated[float, typer.Option(min=0.01, max=1, help="Largest sizes are found to within that.")] = 0.1,
    probe_seconds: Annotated[float, typer.Option(min=1, help=PROBE_HELP)] = 120.0,
    repeats: Annotated[int, typer.Option(min=1, help="Times are medians of so many rounds.")] = 5,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads for computing.", show_default="what the cgroup allows")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu (a memory cgroup), cuda or cuda:N (a share of the device).")] = "cpu",
    cache: Annotated[
        Path | None, typer.Option(help="Keeps the planted model.", show_default="the user's cache folder")
    ] = None,
    json_file: JsonOption = None,
    plot_dir: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Draw a picture of each claim there.")] = None,
) -> None:
    """Memory, latency, throughput, longest prompt and largest batch against all experts resident, at one memory cap.

    Each probe is a process of its own under the cap; one that the cap ends does not fit. emoe is shown in both modes:
    reroute, which changes answers, and load, which is exact. The paper's own ratio stands beside each. On the CPU the
    cap is a memory cgroup, which needs root on most machines.

    On another model, with a cap of your own: `emoe bench claims MODEL --memory-cap 12GiB --budget 20%`

    Ctrl-C and SIGTERM keep what is measured so far, and give its report.
    """
    from emoe.cli.bench_claims_run import run_claims_command

    with reported_errors():
        from emoe.bench.claims import POLICIES, ClaimSettings
        from emoe.runtime.cpus import usable_cpus

        settings = ClaimSettings(
            budget_ratio=parse_one_budget(budget),
            threads=threads or usable_cpus(),
            policies=parse_names("--policies", policies, POLICIES),
            device=device,
            memory_cap_bytes=parse_cap(memory_cap),
            slack_ratio=slack,
            prompt_tokens=prompt_tokens,
            new_tokens=check_new_tokens(new_tokens),
            max_prompt=max_prompt,
            max_batch=max_batch,
            precision_ratio=precision,
            probe_seconds=probe_seconds,
            repeats=repeats,
        )
        run_claims_command(model, settings, cache=cache, json_file=json_file, plot_dir=plot_dir)


def parse_one_budget(text: str) -> float:
    """A share below all of the experts."""
    budgets = parse_budgets(text)
    if len(budgets) != 1 or budgets[0] == 1:
        raise typer.BadParameter(f"{text!r} must be one share below 100%, as 25%", param_hint="--budget")
    return budgets[0]


def parse_cap(text: str | None) -> int | None:
    from emoe.core.errors import EmoeError
    from emoe.core.memory import parse_memory

    if text is None:
        return None
    try:
        size = 0 if "%" in text else parse_memory(text, total_bytes=0)
    except (EmoeError, ValueError):
        size = 0
    if size <= 0:
        raise typer.BadParameter(f"{text!r} must be a size, as 2GiB or 900MB", param_hint="--memory-cap")
    return size
