"""`emoe bench schedule`: the scheduler's policies over recorded traces, simulated. Imports stay inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emoe.cli.eval_options import JsonOption
from emoe.cli.reporting import reported_errors
from emoe.cli.schedule_report import check_names, parse_numbers, parse_residency, read_chosen_costs

TRACE_HELP = "CSV or CSV.gz with arrival_s, prompt_tokens, output_tokens and maybe task. May be given again."
LOAD_HELP = "Requests a second: the trace's times are stretched to that. Several with commas, a row each."
SPEED_HELP = "Of the trace's own rate: 2 is twice as dense. Several with commas."
COSTS_HELP = "`measured`: of the model that ships, on two CPU cores; or a file of `emoe bench costs`."
SLOS_HELP = "TOML with a table a task: ttft_seconds, tpot_seconds, end_to_end_seconds."
USERS_HELP = (
    "A day of so many users instead, with tasks and lengths drawn from the trace's rows: how decision time and memory "
    "grow. Costs and targets are slowed until the peak takes --busy of the workers."
)
RESIDENCY_HELP = (
    "SHARED:ALONE, as 0.5:0.9: coverage of a worker's residents chosen for all tasks and for one alone; each worker's "
    "follow its last 64 prompts. Without it all experts are resident."
)


def schedule_command(
    trace: Annotated[list[Path], typer.Option(exists=True, dir_okay=False, help=TRACE_HELP)],
    policy: Annotated[
        list[str] | None, typer.Option(help="May be given again.", show_default="every one that there is")
    ] = None,
    placement: Annotated[
        str | None, typer.Option(help="most-free, least-wait or residency.", show_default="each policy's own")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="The same for all policies.", show_default="busy 70 % at the own rate")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Sequences that a worker runs at once.")] = 8,
    load: Annotated[str | None, typer.Option(help=LOAD_HELP)] = None,
    speed: Annotated[str | None, typer.Option(help=SPEED_HELP)] = None,
    goodput: Annotated[bool, typer.Option("--goodput", help="Find the highest load served in time instead.")] = False,
    attainment: Annotated[float, typer.Option(min=0.01, max=1, help="With --goodput: the share in time.")] = 0.99,
    precision: Annotated[float, typer.Option(min=0.001, max=1, help="With --goodput: how near.")] = 0.02,
    seeds: Annotated[int, typer.Option(min=1, help="Figures are medians of so many; 0 is the trace as it is.")] = 1,
    first_seed: Annotated[int, typer.Option(min=0, help="Of these seeds.")] = 0,
    requests: Annotated[
        int | None, typer.Option(min=2, help="Only so many of the trace's requests.", show_default="all")
    ] = None,
    task: Annotated[str, typer.Option(help="Of a trace that names none.")] = "long-context",
    slos: Annotated[Path | None, typer.Option(help=SLOS_HELP, show_default="the one that ships")] = None,
    slo_scale: Annotated[float, typer.Option(min=0.001, help="Times every target.")] = 1.0,
    costs: Annotated[str, typer.Option(help=COSTS_HELP)] = "measured",
    front: Annotated[float, typer.Option(min=0, help="Seconds that the services add to a first token.")] = 0.005,
    queue: Annotated[int, typer.Option(min=1, help="Requests that wait at most; further ones are refused.")] = 4096,
    residency: Annotated[str | None, typer.Option(help=RESIDENCY_HELP, metavar="SHARED:ALONE")] = None,
    users: Annotated[int | None, typer.Option(min=1, help=USERS_HELP)] = None,
    requests_per_user: Annotated[float, typer.Option(min=0.001, help="With --users: of each, in a day.")] = 5.0,
    hours: Annotated[float, typer.Option(min=0.01, max=24, help="With --users: so much of the day.")] = 24.0,
    busy: Annotated[float, typer.Option(min=0.01, max=2, help="With --users: of the workers, at the peak.")] = 0.6,
    json_file: JsonOption = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw attainment against load, a panel a trace.")
    ] = None,
) -> None:
    """Simulates the scheduler: its own policies, queue and placement, over workers with measured costs.

    Which policy serves most in time? `emoe bench schedule --trace hour.csv.gz --goodput --seeds 5`

    How does it fare at one to three times the load? `... --speed 1,2,3 --plot speeds.png`

    What does a day of a million users cost it? `... --users 1000000 --workers 1000 --policy ontime`

    Ctrl-C keeps the rows that are done. Nothing is started and no model is needed.
    """
    with reported_errors():
        from emoe.bench.schedule_run import ScheduleSettings
        from emoe.bench.schedule_slos import OWN_TABLE, read_slos
        from emoe.bench.schedule_trace import read_workload
        from emoe.bench.simulate import SimulationOptions
        from emoe.cli.bench_schedule_run import Day, run_day, run_schedule
        from emoe.core.schedule.placement import PLACEMENTS
        from emoe.core.schedule.policies import POLICIES

        names = tuple(policy or POLICIES)
        check_names(names, POLICIES, "--policy")
        check_names(() if placement is None else (placement,), PLACEMENTS, "--placement")
        measured = read_chosen_costs(costs)
        options = SimulationOptions(
            num_workers=workers or 0,
            num_rows=concurrency,
            costs=measured.costs,
            front_seconds=front,
            max_queued=queue,
            residency=parse_residency(residency),
        )
        settings = ScheduleSettings(
            policies=names,
            options=options,
            slo_scale=slo_scale,
            placement=placement,
            speeds=parse_numbers("--speed", speed),
            loads_rps=parse_numbers("--load", load),
            finds_goodput=goodput,
            attainment=attainment,
            precision=precision,
            seeds=tuple(range(first_seed, first_seed + seeds)),
            num_requests=requests,
        )
        workloads = [read_workload(path, task=task) for path in trace]
        targets = read_slos(slos or OWN_TABLE, scale=slo_scale)
        if users is not None:
            day = Day(num_users=users, requests_a_user=requests_per_user, hours=hours, busy_ratio=busy)
            run_day(day, workloads[0], targets, settings, measured, json_file=json_file)
        else:
            run_schedule(workloads, targets, settings, measured, json_file=json_file, plot=plot)
