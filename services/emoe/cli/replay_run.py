"""A trace through the real services: brings them up once a strategy and share, sends each request at its time, counts.

The load is open: a request goes out at its time, whether or not earlier ones are answered; what the scheduler refuses
is counted as failed. Hits are those that workers report with each answer, bytes those of the loader's worker list.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import grpc.aio

from emoe.cli.clients import LoaderWatch
from emoe.cli.display import PlainDisplay
from emoe.cli.failures import CommandError, RemoteError
from emoe.cli.generation_client import Question, ask
from emoe.cli.replay_residency import ask_demand, looking
from emoe.cli.signals import run_until_signalled
from emoe.cli.system import LocalSystem, SystemOptions, local_system
from emoe.cli.view import Counters
from emoe.core.generation import Sampling
from emoe.eval.cluster_coverage import ClusterRecord
from emoe.eval.replay import Outcome, ReplayRow, summarise
from emoe.eval.trace import Arrival
from emoe.runtime.channels import open_channel

Say = Callable[[str], None]
ANSWER_SECONDS = 600.0
LISTED_SECONDS = 10.0
SETTLE_SECONDS = 1.0
"""For the last heartbeats to bring the last counts."""
SAY_EVERY = 50
SHORT_ANSWER_CHARACTERS = 40
"""Longer answers are hardly ever the data's own, word for word."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayStrategy:
    """Settings of the services, and whether requests name their task: their own, or another's."""

    worker: Mapping[str, str] = dataclasses.field(default_factory=dict)
    scheduler: Mapping[str, str] = dataclasses.field(default_factory=dict)
    names_task: bool = True
    shuffles_tasks: bool = False


_BY_TASK = {"own-routing-tokens": "0", "calibration": "off"}
_UNCALIBRATED = {"calibration": "off"}
STRATEGIES: Mapping[str, ReplayStrategy] = {
    "global-frequency": ReplayStrategy(worker=_BY_TASK, scheduler={"no-identify-tasks": ""}, names_task=False),
    "task-frequency": ReplayStrategy(worker=_BY_TASK),
    "task-frequency-shuffled": ReplayStrategy(worker=_BY_TASK, shuffles_tasks=True),
    "task-identified": ReplayStrategy(worker=_BY_TASK, names_task=False),
    "emoe": ReplayStrategy(worker=_UNCALIBRATED),
    "emoe-shuffled": ReplayStrategy(worker=_UNCALIBRATED, shuffles_tasks=True),
    "emoe-calibrated": ReplayStrategy(),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    model: Path
    strategies: tuple[str, ...]
    resident_ratios: tuple[float, ...]
    num_windows: int = 6
    max_concurrency: int = 8
    """On each worker."""
    num_workers: tuple[int, ...] = (1,)
    placements: tuple[str, ...] = ("",)
    """The scheduler's; empty: its own."""
    policy: str = ""
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One of the replays of a trace."""

    strategy: str
    resident_ratio: float
    num_workers: int
    placement: str

    def __str__(self) -> str:
        cluster = "" if self.num_workers == 1 else f", {self.num_workers} workers"
        return f"{self.strategy}, {self.resident_ratio:.0%}{cluster}{f', {self.placement}' if self.placement else ''}"


def run_replay(arrivals: Sequence[Arrival], options: ReplayOptions, *, say: Say) -> list[ReplayRow]:
    """CommandError if it is interrupted, or if the services do not come up; the message has a log's last lines."""
    rows: list[ReplayRow] = []
    done = False

    async def work() -> None:
        nonlocal done
        for run in _runs(options):
            with tempfile.TemporaryDirectory(prefix="emoe-replay-") as folder:
                rows.extend(await _replay_one(arrivals, options, run, Path(folder), say=say))
        done = True

    asyncio.run(run_until_signalled(work()))
    if not done:
        raise CommandError("the replay was stopped before its end")
    return rows


def _runs(options: ReplayOptions) -> Iterator[Run]:
    for ratio, name, num_workers, placement in itertools.product(
        options.resident_ratios, options.strategies, options.num_workers, options.placements
    ):
        yield Run(strategy=name, resident_ratio=ratio, num_workers=num_workers, placement=placement)


async def _replay_one(
    arrivals: Sequence[Arrival], options: ReplayOptions, run: Run, folder: Path, *, say: Say
) -> Iterator[ReplayRow]:
    say(f"{run}: starting the services")
    strategy = STRATEGIES[run.strategy]
    async with local_system(
        _system_options(options, run, folder), on_event=PlainDisplay(sys.stderr).on_child
    ) as system:
        await system.start_planning()
        await system.start_serving()
        tasks = _named_tasks(arrivals, strategy, seed=options.seed)
        before = await _counters(system)
        began = time.monotonic()
        async with looking(system.loader_address, lambda: time.monotonic() - began) as looks:
            outcomes = await _send_all(arrivals, tasks, system, say=lambda line: say(f"{run}: {line}"))
            wall_seconds = time.monotonic() - began
        await asyncio.sleep(SETTLE_SECONDS)
        after = await _counters(system)
        demand = await ask_demand(
            system.loader_address, system.predictor_address, [arrival.row.task for arrival in arrivals]
        )
    moved = [after[worker_id].since(before[worker_id]) for worker_id in before]
    return summarise(
        outcomes,
        strategy=run.strategy,
        resident_ratio=run.resident_ratio,
        wall_seconds=wall_seconds,
        num_windows=options.num_windows,
        bytes_moved=sum(counters.num_bytes_loaded for counters in moved),
        experts_loaded=sum(counters.num_experts_loaded for counters in moved),
        num_workers=run.num_workers,
        placement=run.placement,
        cluster=ClusterRecord(looks=looks, demand=demand),
    )


def _system_options(options: ReplayOptions, run: Run, folder: Path) -> SystemOptions:
    strategy = STRATEGIES[run.strategy]
    chosen = {"placement": run.placement, "policy": options.policy}
    return SystemOptions(
        model=options.model,
        state_dir=folder,
        workers=run.num_workers,
        listen="127.0.0.1:0",
        worker={
            "expert-memory": f"{run.resident_ratio:.4%}",
            "max-concurrency": str(options.max_concurrency),
            **strategy.worker,
        },
        scheduler={**strategy.scheduler, **{name: value for name, value in chosen.items() if value}},
    )


def _named_tasks(arrivals: Sequence[Arrival], strategy: ReplayStrategy, *, seed: int) -> list[str]:
    tasks = [arrival.row.task if strategy.names_task else "" for arrival in arrivals]
    if strategy.shuffles_tasks:
        random.Random(seed).shuffle(tasks)
    return tasks


async def _counters(system: LocalSystem) -> dict[str, Counters]:
    """Of each worker."""
    watch = LoaderWatch(system.loader_address)
    following = asyncio.create_task(watch.follow())
    try:
        async with asyncio.timeout(LISTED_SECONDS):
            return {worker_id: (await watch.worker(worker_id)).counters for worker_id in system.worker_ids}
    except TimeoutError as error:
        raise CommandError("the loader does not list all workers; nothing can be counted") from error
    finally:
        following.cancel()


async def _send_all(
    arrivals: Sequence[Arrival], tasks: Sequence[str], system: LocalSystem, *, say: Say
) -> list[Outcome]:
    began = time.monotonic()
    num_done = 0

    async def send(channel: grpc.aio.Channel, arrival: Arrival, task: str) -> Outcome:
        nonlocal num_done
        await asyncio.sleep(max(0.0, arrival.at_seconds - (time.monotonic() - began)))
        outcome = await _ask(channel, arrival, task, sent_seconds=time.monotonic() - began)
        num_done += 1
        if num_done % SAY_EVERY == 0 or num_done == len(arrivals):
            say(f"{num_done} of {len(arrivals)} requests, {time.monotonic() - began:.0f} s")
        return outcome

    async with open_channel(system.scheduler_address) as channel:
        return await asyncio.gather(
            *(send(channel, arrival, task) for arrival, task in zip(arrivals, tasks, strict=True))
        )


async def _ask(channel: grpc.aio.Channel, arrival: Arrival, task: str, *, sent_seconds: float) -> Outcome:
    row = arrival.row
    question = Question(prompt=row.prompt, task=task, sampling=Sampling(max_tokens=arrival.max_tokens, temperature=0.0))
    try:
        answer = await ask(channel, question, timeout_seconds=ANSWER_SECONDS)
    except RemoteError as error:
        return Outcome(task=row.task, at_seconds=arrival.at_seconds, refusal=str(error))
    can_match = row.task == "classification" and len(row.response) <= SHORT_ANSWER_CHARACTERS
    return Outcome(
        task=row.task,
        at_seconds=arrival.at_seconds,
        ttft_seconds=answer.ttft_seconds,
        total_seconds=answer.total_seconds,
        num_prompt_tokens=answer.usage.num_prompt_tokens,
        num_completion_tokens=answer.usage.num_completion_tokens,
        num_expert_hits=answer.usage.num_expert_hits,
        num_expert_choices=answer.usage.num_expert_choices,
        worker_id=answer.worker_id,
        began_seconds=sent_seconds + answer.queue_seconds,
        is_expected=answer.text.strip() == row.response.strip() if can_match else None,
    )
