"""`emoe ablate`: what one knob of prediction is worth, all else the same. Imports stay inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    read_shares,
)
from emoe.cli.reporting import reported_errors

STUDY_HELP = "interval, static, label-noise or drift; may be given again."


def ablate_command(
    data: Annotated[Path, typer.Option(help=DATA_HELP)],
    model: ModelArgument = None,
    study: Annotated[list[str] | None, typer.Option(help=STUDY_HELP, show_default="all")] = None,
    resident: Annotated[str, typer.Option(help=SHARES_HELP)] = "25%",
    sweep: Annotated[str, typer.Option(help="The shares of the study `static`.")] = "15%,20%,25%,30%,40%,60%",
    calibrated: Annotated[bool, typer.Option("--calibrated", help="With the calibrated model throughout.")] = False,
    streams: Annotated[int, typer.Option(min=1, help="Streams of requests a figure, each drawn anew.")] = 4,
    prompts: Annotated[int, typer.Option(min=2, help="Requests in a stream.")] = 160,
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
) -> None:
    """What eMoE left open, on streams of requests that follow one another with residents kept.

    interval: residents chosen at every p-th prompt only, p from 1 to 80, against quality and bytes moved.

    static: one static choice against what is counted lately, what tasks say, what requests say, and hindsight.

    label-noise: 0 to 40 % of the requests named another's task.

    drift: from one half of the tasks to the other, before, at and after the change; profiles know the first half.

    Plans are made as a worker's are, and the model answers; no service runs. On the model that ships all studies take
    a quarter of an hour of one core.
    """
    with reported_errors():
        from emoe.cli.eval_report import Outputs, run_ablations
        from emoe.cli.paths import resolve_model
        from emoe.core.planning import PLANNERS
        from emoe.eval.ablation_lab import AblationSettings
        from emoe.eval.ablations import STUDIES
        from emoe.eval.harness import Conditions
        from emoe.eval.opening import RunOptions

        studies = tuple(study or STUDIES)
        check_among(studies, tuple(STUDIES), "--study")
        check_among((planner,), tuple(PLANNERS), "--planner")
        run_ablations(
            resolve_model(model),
            data,
            AblationSettings(
                studies=studies,
                resident_ratios=read_shares(resident, "--resident"),
                sweep_ratios=read_shares(sweep, "--sweep"),
                calibrated=calibrated,
                num_streams=streams,
                stream_prompts=prompts,
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
            Outputs(json_file=json_file, plot=plot),
        )
