"""`emoe eval`: what residency costs in quality, and how well experts are foretold. Imports stay inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emoe.cli.reporting import reported_errors

RECORDED = "Recorded routing"
STRATEGY_HELP = "May be given again. Behind one's name, -shuffled deals the task labels out at random."


def eval_command(
    model: Annotated[
        Path | None, typer.Argument(help="Checkpoint folder as published. Default: the small model that ships.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with train/ and test/, in each TASK.jsonl[.zst]: lines with prompt and response."),
    ] = None,
    resident: Annotated[str, typer.Option(help="Resident shares of the experts, separated by commas.")] = "25%,40%",
    strategy: Annotated[list[str] | None, typer.Option(help=STRATEGY_HELP, show_default="all")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each task that are judged, the first of test/.")] = 100,
    profile_rows: Annotated[int, typer.Option(min=1, help="Rows of each task to learn from, of train/.")] = 100,
    together: Annotated[int, typer.Option(min=1, help="Requests that share residents in the mixed load.")] = 8,
    refresh_tokens: Annotated[int, typer.Option(min=1, help="Residents are chosen anew every so many tokens.")] = 64,
    expert_memory: Annotated[
        str, typer.Option(help="What experts may take here; a model larger than that is paged from disk.")
    ] = "100%",
    max_context: Annotated[int, typer.Option(min=2, help="Rows of more tokens are left out.")] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="Mixes requests, deals folds and labels, draws at random.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads for computing.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the report there as JSON; - prints it instead of the table.")
    ] = None,
    routing: Annotated[
        Path | None,
        typer.Option(
            help="In place of a model and data: an .npz with `expert_ids` [tokens, layers, experts a token], and "
            "beside it its index, NAME_index.jsonl[.gz] for NAME_topk.npz: lines with routed_offset, n_routed and "
            "category.",
            rich_help_panel=RECORDED,
        ),
    ] = None,
    index: Annotated[
        Path | None, typer.Option(help="The index, where it lies elsewhere.", rich_help_panel=RECORDED)
    ] = None,
    after_tokens: Annotated[
        int, typer.Option(min=1, help="The first choice comes after so many tokens.", rich_help_panel=RECORDED)
    ] = 32,
    min_tokens: Annotated[
        int, typer.Option(min=2, help="Shorter answers are left out.", rich_help_panel=RECORDED)
    ] = 96,
    num_experts: Annotated[
        int | None,
        typer.Option(min=2, help="Experts a layer.", show_default="as many as were chosen", rich_help_panel=RECORDED),
    ] = None,
    folds: Annotated[
        int,
        typer.Option(min=2, help="Prompts are judged by what the other folds taught.", rich_help_panel=RECORDED),
    ] = 10,
) -> None:
    """What each strategy makes of few resident experts: perplexity against all resident, exact match, coverage.

    With --data, a model answers the test rows of every task, each alone and eight tasks mixed, while a strategy says
    which experts are resident; what it learns from are the training rows. Baselines run beside it.

    With --routing, no model runs: experts for the rest of a recorded answer are chosen after its first tokens, and it
    is counted how many of the choices that came then fall among them.
    """
    if (data is None) == (routing is None):
        raise typer.BadParameter("give either --data, to run a model, or --routing, to judge what was recorded")
    with reported_errors():
        ratios = _parse_ratios(resident)
        if routing is not None:
            from emoe.cli.eval_report import run_routing
            from emoe.eval.routing_eval import RoutingSettings
            from emoe.eval.routing_strategies import STRATEGIES

            run_routing(
                routing,
                index,
                RoutingSettings(
                    resident_ratios=ratios,
                    strategies=_check_strategies(strategy, tuple(STRATEGIES)),
                    after_tokens=after_tokens,
                    refresh_tokens=refresh_tokens,
                    min_tokens=min_tokens,
                    folds=folds,
                    seed=seed,
                ),
                num_experts=num_experts,
                json_file=json_file,
            )
            return
        assert data is not None
        from emoe.cli.eval_report import run_quality
        from emoe.cli.paths import resolve_model
        from emoe.eval.quality import QualitySettings
        from emoe.eval.run import RunOptions
        from emoe.eval.strategies import SHUFFLED
        from emoe.eval.strategies import STRATEGIES as SERVED

        run_quality(
            resolve_model(model),
            data,
            QualitySettings(
                resident_ratios=ratios,
                strategies=_check_strategies(strategy, (*SERVED, *(name + SHUFFLED for name in SERVED)))
                if strategy
                else QualitySettings.strategies,
                num_together=together,
                refresh_tokens=refresh_tokens,
                seed=seed,
            ),
            RunOptions(
                num_rows=rows,
                num_profile_rows=profile_rows,
                expert_memory=expert_memory,
                max_context=max_context,
                threads=threads,
            ),
            json_file,
        )


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
