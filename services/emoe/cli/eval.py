"""`emoe eval`: what residency costs in quality, and how well experts are foretold. Imports stay inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from emoe.cli.eval_options import (
    DATA_HELP,
    SHARES_HELP,
    CalibrationOption,
    DeviceOption,
    ExpertMemoryOption,
    FirstTokenOption,
    JsonOption,
    MaxContextOption,
    ModelArgument,
    PlannerOption,
    PlotOption,
    ProfileOption,
    ProfileRowsOption,
    RefreshOption,
    RowsOption,
    SeedOption,
    ThreadsOption,
    TogetherOption,
    check_among,
    check_each,
    read_shares,
)
from emoe.cli.reporting import reported_errors

RECORDED = "Recorded routing"
STRATEGY_HELP = (
    "May be given again: emoe, task-frequency, retrieval-embedding, retrieval-first-gate, retrieval-trajectory, each "
    "also with -calibrated. all-resident, random, global-frequency, task-frequency and oracle run beside it in any "
    "case, and whatever reads task labels once more with these -shuffled."
)


def eval_command(
    model: ModelArgument = None,
    data: Annotated[Path | None, typer.Option(help=DATA_HELP)] = None,
    resident: Annotated[str, typer.Option(help=SHARES_HELP)] = "25%,40%",
    strategy: Annotated[list[str] | None, typer.Option(help=STRATEGY_HELP, show_default="all")] = None,
    load: Annotated[
        Literal["single", "mixed", "both"],
        typer.Option(help="Each request alone with its residents, or several of any tasks that share them."),
    ] = "both",
    rows: RowsOption = 100,
    profile: ProfileOption = None,
    profile_rows: ProfileRowsOption = 100,
    calibration: CalibrationOption = None,
    planner: PlannerOption = "global",
    together: TogetherOption = 8,
    refresh_tokens: RefreshOption = 64,
    first_token_waits: FirstTokenOption = False,
    expert_memory: ExpertMemoryOption = "100%",
    max_context: MaxContextOption = 1024,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    json_file: JsonOption = None,
    plot: PlotOption = None,
    routing: Annotated[
        Path | None,
        typer.Option(
            help="In place of a model and data: an .npz with `expert_ids` (tokens, layers, experts a token), and "
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
    """What each strategy makes of few resident experts: perplexity against all resident, similarity, coverage, bytes.

    With --data, a model answers the test rows of every task, each alone and eight of any tasks together, while a
    strategy says which experts are resident. Of the choices that tokens make, coverage is the share that was resident
    among those that the answers were predicted from, hit ratio among all, the prompts' too. Refresh is the time to
    predict and plan once. "Gap closed" is the way gone from global-frequency to oracle.

    With --routing, no model runs: experts for the rest of a recorded answer are chosen after its first tokens, and it
    is counted how many of the choices that came then fall among them.

    On the model that ships, 30 rows a task and two shares take a few minutes of one core.
    """
    if (data is None) == (routing is None):
        raise typer.BadParameter("give either --data, to run a model, or --routing, to judge what was recorded")
    with reported_errors():
        from emoe.cli.eval_report import Outputs, run_quality, run_routing

        ratios = read_shares(resident, "--resident")
        outputs = Outputs(json_file=json_file, plot=plot)
        if routing is not None:
            from emoe.eval.routing_eval import RoutingSettings
            from emoe.eval.routing_strategies import STRATEGIES

            names = tuple(strategy or STRATEGIES)
            check_among(names, tuple(STRATEGIES), "--strategy")
            run_routing(
                routing,
                index,
                RoutingSettings(
                    resident_ratios=ratios,
                    strategies=names,
                    after_tokens=after_tokens,
                    refresh_tokens=refresh_tokens,
                    min_tokens=min_tokens,
                    folds=folds,
                    seed=seed,
                ),
                outputs,
                num_experts=num_experts,
            )
            return
        assert data is not None
        from emoe.cli.paths import resolve_model
        from emoe.core.planning import PLANNERS
        from emoe.eval.harness import Conditions
        from emoe.eval.opening import RunOptions
        from emoe.eval.quality import QualitySettings
        from emoe.eval.strategies import Variant

        check_each(strategy or (), Variant.parse, "--strategy")
        check_among((planner,), tuple(PLANNERS), "--planner")
        run_quality(
            resolve_model(model),
            data,
            QualitySettings(
                resident_ratios=ratios,
                strategies=tuple(strategy or ()),
                loads=("single", "mixed") if load == "both" else (load,),
                conditions=Conditions(
                    num_together=together,
                    refresh_tokens=refresh_tokens,
                    first_token_waits=first_token_waits,
                    planner=planner,
                    seed=seed,
                ),
            ),
            RunOptions(
                num_rows=rows,
                num_profile_rows=profile_rows,
                profile=profile,
                calibration=calibration,
                expert_memory=expert_memory,
                max_context=max_context,
                threads=threads,
                device=device,
            ),
            outputs,
        )
