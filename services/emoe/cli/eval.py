"""`emoe eval`: what residency costs and what each strategy makes of it. Imports stay inside the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emoe.cli.reporting import reported_errors

if TYPE_CHECKING:
    from emoe.eval.routing_eval import RoutingReport

STRATEGIES_HELP = (
    "random, global-frequency, task-frequency, task-frequency-shuffled, own, neighbours, emoe, oracle; "
    "may be given again."
)


def eval_command(
    routing: Annotated[
        Path,
        typer.Option(
            help="Recorded routing: an .npz with `expert_ids` [tokens, layers, experts a token], and beside it its "
            "index, NAME_index.jsonl[.gz] for NAME_topk.npz: lines with routed_offset, n_routed and category."
        ),
    ],
    index: Annotated[Path | None, typer.Option(help="The index, where it lies elsewhere.")] = None,
    resident: Annotated[
        str, typer.Option(help="Resident shares of each layer's experts, separated by commas.")
    ] = "25%",
    strategy: Annotated[list[str] | None, typer.Option(help=STRATEGIES_HELP, show_default="all")] = None,
    after_tokens: Annotated[int, typer.Option(min=1, help="The first choice comes after so many tokens.")] = 32,
    refresh_tokens: Annotated[int, typer.Option(min=1, help="And a new one every so many from there.")] = 64,
    min_tokens: Annotated[int, typer.Option(min=2, help="Shorter answers are left out.")] = 96,
    num_experts: Annotated[
        int | None, typer.Option(min=2, help="Experts a layer.", show_default="as many as were chosen")
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Prompts are judged by what the other folds taught.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Deals prompts into folds, and draws at random.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the report there as JSON; - prints it instead of the table.")
    ] = None,
) -> None:
    """How much of a running request's routing each strategy would find resident.

    Chooses experts after an answer's first tokens, once and again and again, and counts how many of the choices that
    came then fall among them. Learns from other prompts only; once more with the prompt's whole category left out.
    """
    with reported_errors():
        from emoe.cli.bench_report import say
        from emoe.eval.recorded import read_recorded
        from emoe.eval.routing_eval import RoutingSettings, evaluate_routing
        from emoe.eval.routing_strategies import STRATEGIES

        settings = RoutingSettings(
            resident_ratios=_parse_ratios(resident),
            strategies=_check_strategies(strategy, tuple(STRATEGIES)),
            after_tokens=after_tokens,
            refresh_tokens=refresh_tokens,
            min_tokens=min_tokens,
            folds=folds,
            seed=seed,
        )
        say(f"reading {routing}")
        recorded = read_recorded(routing, index, num_experts=num_experts)
        give_routing(evaluate_routing(recorded, settings, name=routing.name, say=say), json_file)


def give_routing(report: RoutingReport, json_file: Path | None) -> None:
    text = json.dumps(dataclasses.asdict(report), indent=1)
    if json_file == Path("-"):
        print(text)
        return
    from emoe.cli.rows_table import build_table, wide_console

    console = wide_console()
    console.print(
        f"[bold]routing[/] of {report.routing}: {report.num_prompts} answers, {report.num_tokens} tokens judged, "
        f"{report.num_layers} layers of {report.num_experts} experts, {report.top_k} a token"
    )
    console.print(build_table(report.rows))
    if json_file is not None:
        json_file.write_text(text + "\n")


def _parse_ratios(text: str) -> tuple[float, ...]:
    ratios = []
    for piece in (piece.strip() for piece in text.split(",")):
        try:
            ratio = float(piece.removesuffix("%")) / (100 if piece.endswith("%") else 1)
        except ValueError:
            ratio = 0.0
        if not 0 < ratio <= 1:
            raise typer.BadParameter(f"{piece!r} is no share above 0 and up to 100%", param_hint="--resident")
        ratios.append(ratio)
    return tuple(ratios)


def _check_strategies(named: list[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    unknown = sorted(set(named or ()) - set(known))
    if unknown:
        raise typer.BadParameter(
            f"{', '.join(unknown)} not known; there are {', '.join(known)}", param_hint="--strategy"
        )
    return tuple(named or known)
