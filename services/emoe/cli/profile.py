"""`emoe profile`: what a model's tasks route, and how much they hang on it, in a file beside the model.

Imports stay inside the command.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emoe.cli.reporting import reported_errors

if TYPE_CHECKING:
    from emoe.store.profile import Profile
    from emoe.train.profiling import ProfileOptions

CALIBRATION = "Calibration"
INTERRUPTED_STATUS = 130


def profile_command(
    model: Annotated[
        Path | None, typer.Argument(help="Checkpoint folder as published. Default: the small model that ships.")
    ] = None,
    *,
    data: Annotated[
        Path,
        typer.Option(help="Folder with train/, in it TASK.jsonl[.zst] for each task: lines with prompt and response."),
    ],
    rows: Annotated[int, typer.Option(min=1, help="Rows of each task, the first of train/.")] = 200,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", "--tasks", help="Only this task; may be given again.", show_default="all in the data"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where the files go.", show_default="beside the model")] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity/--no-sensitivity", help="Measure what random routing does to each task.")
    ] = True,
    sensitivity_rows: Annotated[int, typer.Option(min=1, help="Rows of each task that are misrouted.")] = 16,
    sensitivity_threshold: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=1.0,
            help="A layer may be misrouted where answers stay this similar, and their perplexity below its inverse.",
        ),
    ] = 0.85,
    expert_memory: Annotated[
        str, typer.Option(help="What experts may take here; a model larger than that is paged from disk.")
    ] = "100%",
    max_context: Annotated[int, typer.Option(min=2, help="Rows of more tokens are left out.")] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="Of random routing and of training.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads for computing.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Train what makes up for absent experts, emoe-calibration.safetensors, round the profile that lies "
            "there; it is made first where there is none of these weights.",
            rich_help_panel=CALIBRATION,
        ),
    ] = False,
    minutes: Annotated[float | None, typer.Option(min=0.1, help="Train so long.", rich_help_panel=CALIBRATION)] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Train on so many.", show_default="2000000", rich_help_panel=CALIBRATION),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the loss there, as PNG.", metavar="FILE.png", rich_help_panel=CALIBRATION),
    ] = None,
) -> None:
    """Learn what each task routes, from prompts and answers like those that will be served.

    Training rows run with all experts resident. For each task it counts the experts that prompts and answers choose,
    and their lengths; it routes layer after layer at random to see how much the answers suffer; and it trains what
    foretells a request's coming routing. emoe-profile.json and emoe-profile.safetensors are written beside the model,
    where `emoe up`, `emoe serve` and `emoe eval` find them; beside any other weights they are refused.

    With --calibrate, a small correction is trained besides, for workers that reroute: the model with a part of its
    experts learns to answer as it does with all of them.

    Ctrl-C ends it; the same command goes on where it ended.
    """
    from emoe.cli.paths import resolve_model
    from emoe.train.profiling import ProfileOptions

    if not calibrate and (minutes, tokens, plot) != (None, None, None):
        raise typer.BadParameter("--minutes, --tokens and --plot are for --calibrate")
    with reported_errors(as_json=as_json):
        folder = resolve_model(model)
        options = ProfileOptions(
            num_rows=rows,
            tasks=tuple(task or ()),
            num_sensitivity_rows=sensitivity_rows if sensitivity else 0,
            sensitivity_threshold=sensitivity_threshold,
            expert_memory=expert_memory,
            max_context=max_context,
            threads=threads,
            device=device,
            seed=seed,
        )
        training = CalibrationWish(minutes=minutes, tokens=tokens, plot=plot) if calibrate else None
        try:
            _run(folder, data, out or folder, options, training, as_json=as_json)
        except KeyboardInterrupt:
            print(f"\nemoe: interrupted; {_kept(out or folder)}", file=sys.stderr, flush=True)
            raise SystemExit(INTERRUPTED_STATUS) from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationWish:
    minutes: float | None
    tokens: int | None
    plot: Path | None


def _run(
    folder: Path, data: Path, out: Path, options: ProfileOptions, training: CalibrationWish | None, *, as_json: bool
) -> None:
    from emoe.cli.bench_report import say
    from emoe.cli.failures import CommandError
    from emoe.train.profiling import find_profile, make_profile

    if not out.is_dir():
        raise CommandError(f"{out} is no folder; make it, or give another --out")
    found = None if training is None else find_profile(folder, out)
    if found is None:
        found = make_profile(folder, data, out, options, say=say)
        _give(folder, out, found, as_json=as_json)
    if training is not None:
        _calibrate(folder, data, out, found, options, training, as_json=as_json)


def _calibrate(
    folder: Path,
    data: Path,
    out: Path,
    profile: Profile,
    options: ProfileOptions,
    training: CalibrationWish,
    *,
    as_json: bool,
) -> None:
    from emoe.cli.bench_report import say
    from emoe.cli.rows_table import build_table, wide_console
    from emoe.store.profile import CALIBRATION_FILE
    from emoe.train.calibrate import CalibrateOptions, run_calibration

    wanted = CalibrateOptions(
        tasks=options.tasks,
        tokens=training.tokens,
        minutes=training.minutes,
        max_context=options.max_context,
        seed=options.seed,
        device=options.device,
        threads=options.threads,
        output=out / CALIBRATION_FILE,
        plot=training.plot,
    )
    report = run_calibration(folder, data, wanted, profile=profile, say=say)
    if as_json:
        print(json.dumps({"calibration": dataclasses.asdict(report)}, indent=1))
    else:
        wide_console().print(build_table([report]))


def _kept(out: Path) -> str:
    from emoe.store.profile import CALIBRATION_FILE
    from emoe.train.profiling import WORK_FILE

    kept = [path for path in (out / WORK_FILE, out / f"{CALIBRATION_FILE}.state") if path.exists()]
    if not kept:
        return "nothing was measured yet"
    return f"what was done is kept in {' and '.join(map(str, kept))}: the same command goes on from there"


def _give(folder: Path, out: Path, profile: Profile, *, as_json: bool) -> None:
    from emoe.cli.rows_table import build_table, wide_console
    from emoe.store.profile import LEARNED_FILE, PROFILE_FILE
    from emoe.train.summary import summarise

    rows, files = summarise(profile), [out / name for name in (PROFILE_FILE, LEARNED_FILE)]
    if as_json:
        sizes = {str(path): path.stat().st_size for path in files}
        print(json.dumps({"files": sizes, "tasks": [dataclasses.asdict(row) for row in rows]}, indent=1))
        return
    console = wide_console()
    num_layers, num_experts = len(profile.moe_layers), profile.shape[1]
    console.print(f"[bold]profile[/] of {folder.name} ({profile.family}): {num_layers} layers of {num_experts} experts")
    console.print(build_table(rows))
    console.print(f"wrote {' and '.join(map(str, files))}", soft_wrap=True)
