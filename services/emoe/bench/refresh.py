"""`emoe bench refresh`: what it costs to keep few experts and to change them while requests run.

Whole systems of the four services, all of them up and one at work at a time, take turns with the same requests of all
tasks. Answers are forced to the references, so speed and perplexity are of the same run. The caller starts the systems.
"""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from emoe.bench.refresh_load import Ask, LoadResult, run_load
from emoe.bench.rows import RefreshRow, RefreshSample
from emoe.runtime.channels import open_channel
from emoe.v1 import loader_pb2, worker_pb2, worker_pb2_grpc

ALL_RESIDENT, REFRESH, CALIBRATED, STATIC = "all-resident", "refresh", "refresh-calibrated", "static"
ASK_SECONDS = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefreshSettings:
    """`requests`: of one turn, of all clients together."""

    resident: str = "20%"
    clients: int = 8
    requests: int = 112
    repeats: int = 5
    max_context: int = 1024
    refresh_interval_prompts: str = "auto"
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.requests < self.clients:
            raise ValueError(f"{self.requests} requests do not keep {self.clients} clients busy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
    """A system that is up. `pids`: service -> process."""

    variant: str
    resident: str
    scheduler: str
    worker: str
    pids: Mapping[str, int]


class RefreshBench:
    """`samples` is right at any time: after a cancelled `run` the turns of whole rounds are there."""

    def __init__(self, settings: RefreshSettings, systems: Sequence[Served], *, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._systems = systems
        self._say = say
        self.samples: dict[str, list[RefreshSample]] = {served.variant: [] for served in systems}

    async def run(self, turns: Sequence[Sequence[Ask]]) -> None:
        """The first of `turns` warms every system up, and is not counted."""
        for served in self._systems:
            self._say(f"warming up: {served.variant}")
            await run_load(served.scheduler, turns[0], clients=self._settings.clients)
        for number, asks in enumerate(turns[1:]):
            first = number % len(self._systems)
            taken = {}
            for served in (*self._systems[first:], *self._systems[:first]):
                sample = taken[served.variant] = await self._take_turn(served, asks)
                rate = sample.num_tokens / sample.wall_seconds
                self._say(f"round {number + 1} of {len(turns) - 1}: {served.variant}, {rate:.0f} tokens/s")
            for variant, sample in taken.items():
                self.samples[variant].append(sample)

    async def _take_turn(self, served: Served, asks: Sequence[Ask]) -> RefreshSample:
        before, began = await _state(served.worker), _processor_seconds(served.pids)
        result = await run_load(served.scheduler, asks, clients=self._settings.clients)
        after, ended = await _state(served.worker), _processor_seconds(served.pids)
        return _sample(result, before, after, {name: ended[name] - began[name] for name in began})

    def rows(self) -> tuple[RefreshRow, ...]:
        """Of whole rounds; none before the first."""
        full = self.samples[ALL_RESIDENT]
        if not full:
            return ()
        return tuple(
            _row(served, self._settings.clients, self.samples[served.variant], full) for served in self._systems
        )


async def _state(address: str) -> loader_pb2.WorkerState:
    async with open_channel(address) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        response = await stub.GetState(worker_pb2.GetStateRequest(), timeout=ASK_SECONDS)
    state: loader_pb2.WorkerState = response.state
    return state


def _processor_seconds(pids: Mapping[str, int]) -> dict[str, float]:
    """Processor time that each process has had, all its threads; 0 for one that has ended, or where it is not told."""
    return {service: _processor_seconds_of(Path(f"/proc/{pid}/stat")) for service, pid in pids.items()}


def _processor_seconds_of(stat: Path) -> float:
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _sample(
    result: LoadResult, before: loader_pb2.WorkerState, after: loader_pb2.WorkerState, processor: Mapping[str, float]
) -> RefreshSample:
    old, new = before.counters, after.counters
    return RefreshSample(
        num_prompt_tokens=result.num_prompt_tokens,
        num_tokens=result.num_tokens,
        wall_seconds=result.wall_seconds,
        ttft_seconds=tuple(result.ttft_seconds),
        nll=result.nll,
        num_plans=after.applied_epoch - before.applied_epoch,
        num_loaded_bytes=new.num_bytes_loaded - old.num_bytes_loaded,
        num_expert_hits=new.num_expert_hits - old.num_expert_hits,
        num_expert_choices=new.num_expert_choices - old.num_expert_choices,
        processor_seconds=processor,
    )


def _row(served: Served, clients: int, samples: Sequence[RefreshSample], full: Sequence[RefreshSample]) -> RefreshRow:
    perplexity = _perplexity(samples)
    pairs = list(zip(samples, full, strict=True))
    return RefreshRow(
        variant=served.variant,
        mode="reroute",
        resident=served.resident,
        clients=clients,
        tokens_per_second=statistics.median(map(_rate, samples)),
        tokens_ratio=statistics.median(_rate(one) / _rate(other) for one, other in pairs),
        processor_ratio=statistics.median(_processor_rate(one) / _processor_rate(other) for one, other in pairs),
        ttft_p50_seconds=statistics.median(seconds for one in samples for seconds in one.ttft_seconds),
        num_plans=sum(one.num_plans for one in samples),
        loaded_bytes=sum(one.num_loaded_bytes for one in samples),
        hit_ratio=sum(one.num_expert_hits for one in samples) / max(1, sum(one.num_expert_choices for one in samples)),
        perplexity=perplexity,
        perplexity_ratio=perplexity / _perplexity(full),
        samples=tuple(samples),
    )


def _rate(sample: RefreshSample) -> float:
    return sample.num_tokens / sample.wall_seconds


def _processor_rate(sample: RefreshSample) -> float:
    return sample.num_tokens / max(1e-9, sum(sample.processor_seconds.values()))


def _perplexity(samples: Sequence[RefreshSample]) -> float:
    return math.exp(sum(one.nll for one in samples) / sum(one.num_tokens for one in samples))
