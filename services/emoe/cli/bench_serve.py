"""`emoe bench serve`: an open load on a running system. Imports stay inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emoe.cli.eval_options import PlotOption
from emoe.cli.reporting import reported_errors

TRACE_HELP = "CSV or CSV.gz with arrival_s, prompt_tokens, output_tokens, and task where there is one."
DATA_HELP = (
    "Folder with test/TASK.jsonl[.zst], whose rows the trace names by corpus_id: their texts are the prompts. Without "
    "it, prompts are as many random tokens as the trace says."
)


def bench_serve_command(
    trace: Annotated[Path, typer.Option(help=TRACE_HELP)],
    speed: Annotated[
        float, typer.Option(min=1e-6, help="Of the trace's time: 2 sends twice as many requests a second.")
    ] = 1.0,
    requests: Annotated[int | None, typer.Option(min=2, help="The first so many.", show_default="all")] = None,
    seed: Annotated[int, typer.Option(min=0, help="0: the minutes as recorded; any other draws them anew.")] = 0,
    data: Annotated[Path | None, typer.Option(help=DATA_HELP)] = None,
    slos: Annotated[
        Path | None,
        typer.Option(
            help="TOML with a table a task: ttft_seconds, tpot_seconds, end_to_end_seconds.",
            show_default="the one that ships",
        ),
    ] = None,
    slo_scale: Annotated[float, typer.Option(min=1e-3, help="Targets times this.")] = 1.0,
    max_context: Annotated[
        int | None,
        typer.Option(min=2, help="Longer prompts are cut.", show_default="what the workers of the emoe up here take"),
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(min=2, help="Random tokens are below.", show_default="the model's, or 256")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for each answer.")] = 600.0,
    target: Annotated[
        str | None,
        typer.Option(
            envvar=["EMOE_TARGET", "EMOE_ADDRESS"],
            help="host:port of a scheduler, here or in a cluster. Default: the emoe up that runs here.",
        ),
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="With --target: by TLS, as a gateway may want it.")] = False,
    state_dir: Annotated[
        Path | None, typer.Option(envvar="EMOE_STATE_DIR", help="Of the emoe up.", show_default="as emoe up's")
    ] = None,
    replays: Annotated[int, typer.Option(min=1, help="So often, one after the other.")] = 1,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Of the emoe up here: simulate the same requests with the costs it measured."),
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write rows and requests there as JSON; - prints it, not the table.")
    ] = None,
    plot: PlotOption = None,
) -> None:
    """Sends a recorded stream of requests to a running system, each at its own time, and says how many met their SLO.

    The load is open: a request leaves at its time whatever became of those before it, and its latencies count from
    that time, so that a system which stalls is charged with all that came meanwhile. Answers are exactly as long as
    the trace says. Each request carries its task's targets. Ctrl-C ends it, and shows what was done until then.
    """
    with reported_errors():
        from emoe.cli.bench_serve_report import give
        from emoe.cli.bench_serve_run import ServeOptions, run_serve
        from emoe.cli.generate import find_target
        from emoe.cli.paths import default_state_dir

        if plot is not None:
            from emoe.eval.plots import import_pyplot

            import_pyplot()
        folder = state_dir or default_state_dir()
        options = ServeOptions(
            trace=trace,
            speed=speed,
            num_requests=requests,
            seed=seed,
            data=data,
            slo_table=slos,
            slo_scale=slo_scale,
            max_context=max_context,
            vocab_size=vocab_size,
            timeout_seconds=timeout,
            target=find_target(target, folder, tls=tls),
            state_dir=None if target else folder,
            num_replays=replays,
            measures=compare,
        )
        run = run_serve(options)
        give(run, options, json_file)
        if plot is not None:
            from emoe.bench.serve_plot import draw

            draw(run.replays[0].load.workload, run.replays[0].outcome, run.slos, plot)
