"""The process side of `emoe bench serve`: what to send and where to, and the replays.

Of the `emoe up` that runs here it asks how long a context may be and how large the vocabulary is; any other system is
known by its front door alone.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import grpc.aio

from emoe.bench.schedule_slos import OWN_TABLE, read_slos
from emoe.bench.schedule_trace import read_workload
from emoe.bench.serve import OpenLoad, ServeOutcome
from emoe.bench.serve_compare import Measured
from emoe.bench.serve_load import Load, fit_context, pick, read_corpus_ids, speed_up, with_texts
from emoe.bench.serve_rows import Labels, ServeRow, summarise
from emoe.cli.bench_serve_measure import measure_system
from emoe.cli.bench_serve_progress import following
from emoe.cli.failures import CommandError
from emoe.cli.generate import Target
from emoe.cli.generation_client import check_scheduler
from emoe.cli.loader_facts import ask_workers
from emoe.cli.runfile import RunningSystem, find_running_system
from emoe.cli.signals import run_until_signalled
from emoe.core.slo import Slo
from emoe.v1 import scheduler_pb2, scheduler_pb2_grpc

ASK_SECONDS = 10.0
DEFAULT_VOCABULARY = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeOptions:
    trace: Path
    speed: float
    num_requests: int | None
    seed: int
    data: Path | None
    slo_table: Path | None
    slo_scale: float
    max_context: int | None
    vocab_size: int | None
    timeout_seconds: float
    target: Target
    state_dir: Path | None
    """Of the `emoe up` to ask; None for a target that was named."""
    num_replays: int = 1
    measures: bool = False
    """After each replay, what a simulator of it needs to know."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
    load: Load
    outcome: ServeOutcome
    rows: tuple[ServeRow, ...]
    """None ended: no rows."""


@dataclasses.dataclass(kw_only=True)
class ServeRun:
    """Filled while it runs, so that what was done is there when it is stopped. `measured`: one a replay, if wanted."""

    slos: Mapping[str, Slo]
    replays: list[Replay] = dataclasses.field(default_factory=list)
    measured: list[Measured] = dataclasses.field(default_factory=list)


def run_serve(options: ServeOptions) -> ServeRun:
    """CommandError when there was nothing to measure."""
    run = ServeRun(slos=read_slos(options.slo_table or OWN_TABLE, scale=options.slo_scale))
    load = read_load(options)
    asyncio.run(run_until_signalled(_replay_all(load, options, run)))
    if not any(replay.rows for replay in run.replays):
        raise CommandError("it was stopped before any request had ended; there is nothing to show")
    return run


async def _replay_all(load: Load, options: ServeOptions, run: ServeRun) -> None:
    system = find_running_system(options.state_dir) if options.state_dir else None
    if options.measures and system is None:
        raise CommandError("--compare needs the emoe up that runs here: only its loader tells what its steps take")
    async with options.target.open_channel() as channel:
        await check_scheduler(channel, options.target.address, timeout_seconds=ASK_SECONDS)
        load = await fitted(load, options, system)
        for _ in range(options.num_replays):
            labels = await _ask_labels(channel, options)
            await replay(channel, load, labels, options, run)
            if options.measures and system:
                run.measured.append(await measure_system(channel, system.loader, vocab_size=load.vocab_size))


def read_load(options: ServeOptions) -> Load:
    """At the wanted speed, as many as wanted. InvalidRequestError says what is wrong with trace or data."""
    workload = read_workload(options.trace)
    if options.data is None:
        workload = workload.drawn(options.seed, num_requests=options.num_requests)
        return Load(workload=speed_up(workload, options.speed), seed=options.seed)
    from emoe.eval.rows import read_rows

    parts = read_rows(options.data, "test")
    texts = {row.row_id: row.prompt for rows in parts.values() for row in rows if row.row_id}
    load = with_texts(workload, read_corpus_ids(options.trace), texts)
    most = min(options.num_requests or len(load.workload), len(load.workload))
    chosen = pick(load.workload, range(most))
    return dataclasses.replace(load, workload=speed_up(chosen, options.speed), texts=(load.texts or ())[:most])


async def fitted(load: Load, options: ServeOptions, system: RunningSystem | None) -> Load:
    """Within the context and the vocabulary of what answers, as far as these are known."""
    context, vocabulary = options.max_context, options.vocab_size
    if system:
        workers = await ask_workers(system.loader)
        context = context or min((worker.max_tokens_per_sequence for worker in workers), default=None)
        vocabulary = vocabulary or _vocabulary(Path(system.model))
    workload = load.workload if context is None else fit_context(load.workload, context)
    return dataclasses.replace(load, workload=workload, vocab_size=vocabulary or DEFAULT_VOCABULARY)


def _vocabulary(model: Path) -> int | None:
    try:
        size = json.loads((model / "config.json").read_text()).get("vocab_size")
    except (OSError, ValueError):
        return None
    return size if isinstance(size, int) else None


async def _ask_labels(channel: grpc.aio.Channel, options: ServeOptions) -> Labels:
    stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
    status = await stub.GetStatus(scheduler_pb2.GetSchedulerStatusRequest(), timeout=ASK_SECONDS)
    return Labels(policy=status.policy or "?", workers=status.num_workers, slo_scale=options.slo_scale)


async def replay(channel: grpc.aio.Channel, load: Load, labels: Labels, options: ServeOptions, run: ServeRun) -> None:
    """Adds what was measured to the run, also when it is cancelled."""
    opened = OpenLoad(channel, load.workload, run.slos, load.write_prompt, timeout_seconds=options.timeout_seconds)
    try:
        async with following(opened.progress):
            await opened.run()
    finally:
        rows = summarise(load.workload, opened.outcome, run.slos, labels)
        run.replays.append(Replay(load=load, outcome=opened.outcome, rows=rows))
