"""`emoe bench services`: what the four services cost, against the engine called in a process of its own.

The caller has started the services; each path gets the same prompts, and they take turns: never two at once.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from emoe.bench import closed_loop
from emoe.bench.children import ChildProcess, child_process
from emoe.bench.machine import describe_machine
from emoe.bench.prompts import random_prompts, vocab_size_of
from emoe.bench.rows import LoopSample, Report, ServiceRow
from emoe.store.store import ExpertStore

CHILD = "emoe.bench.engine_child"
ENGINE = "engine"
WARM_UP_REQUESTS = 1

Prompts = list[list[list[int]]]
"""[client][request][token]"""
LoopRun = Callable[[Prompts], Awaitable[LoopSample]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    clients: tuple[int, ...] = (1, 16)
    prompt_tokens: int = 128
    new_tokens: int = 64
    requests_per_client: int = 3
    repeats: int = 5
    threads: int | None = None

    def engine_options(self, *, threads: int) -> dict[str, str]:
        """The same for the worker and for the engine alone, in the words of the worker's settings."""
        return {
            "miss_policy": "load",
            "expert_memory": "100%",
            "max_context": str(self.prompt_tokens + self.new_tokens),
            "max_concurrency": str(max(self.clients)),
            "threads": str(threads),
        }


async def bench_services(
    model: Path, settings: ServiceSettings, addresses: Mapping[str, str], *, say: Callable[[str], None]
) -> Report:
    """`addresses`: where `scheduler` and `worker` listen; they serve `model`."""
    machine = describe_machine(threads=settings.threads)
    with ExpertStore.open(model) as store:
        family, vocab_size = store.family, vocab_size_of(store)
    options = settings.engine_options(threads=machine.threads) | {"model": str(model)}
    rows: list[ServiceRow] = []
    say("loading the engine alone")
    async with child_process(CHILD, options, name="the engine alone") as child:
        paths = _paths(child, addresses, settings)
        for clients in settings.clients:
            samples = await _take_turns(paths, clients, settings, vocab_size=vocab_size, say=say)
            rows += compare([_row(name, clients, taken) for name, taken in samples.items()])
    return Report(
        benchmark="services",
        model=str(model),
        family=family,
        machine=machine,
        settings=dataclasses.asdict(settings),
        rows=tuple(rows),
    )


def _paths(child: ChildProcess, addresses: Mapping[str, str], settings: ServiceSettings) -> dict[str, LoopRun]:
    async def engine(prompts: Prompts) -> LoopSample:
        answer = await child.ask(prompts=prompts, new_tokens=settings.new_tokens)
        return LoopSample(**answer | {"ttft_seconds": tuple(answer["ttft_seconds"])})

    def service(name: str, address: str) -> LoopRun:
        async def run(prompts: Prompts) -> LoopSample:
            return await closed_loop.run_loop(name, address, prompts, new_tokens=settings.new_tokens)

        return run

    return {ENGINE: engine} | {name: service(name, address) for name, address in addresses.items()}


async def _take_turns(
    paths: Mapping[str, LoopRun],
    clients: int,
    settings: ServiceSettings,
    *,
    vocab_size: int,
    say: Callable[[str], None],
) -> dict[str, list[LoopSample]]:
    def prompts(num_requests: int, seed: int) -> Prompts:
        drawn = random_prompts(clients * num_requests, settings.prompt_tokens, vocab_size=vocab_size, seed=seed)
        return [drawn[client * num_requests :][:num_requests] for client in range(clients)]

    names = list(paths)
    samples: dict[str, list[LoopSample]] = {name: [] for name in names}
    for path in paths.values():
        await path(prompts(WARM_UP_REQUESTS, seed=0))
    for repeat in range(settings.repeats):
        asked = prompts(settings.requests_per_client, seed=repeat + 1)
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(await paths[name](asked))
        say(f"{clients} clients: repeat {repeat + 1} of {settings.repeats}")
    return samples


def _row(path: str, clients: int, samples: Sequence[LoopSample]) -> ServiceRow:
    return ServiceRow(
        path=path,
        clients=clients,
        tokens_per_second=statistics.median(s.num_tokens / s.wall_seconds for s in samples),
        ttft_p50_seconds=statistics.median(seconds for s in samples for seconds in s.ttft_seconds),
        tokens_ratio=None,
        ttft_ratio=None,
        samples=tuple(samples),
    )


def compare(rows: Sequence[ServiceRow]) -> list[ServiceRow]:
    """One number of clients' rows, with the services' ratios to the engine alone."""
    alone = next(row for row in rows if row.path == ENGINE)
    return [
        row
        if row is alone
        else dataclasses.replace(
            row,
            tokens_ratio=row.tokens_per_second / alone.tokens_per_second,
            ttft_ratio=row.ttft_p50_seconds / alone.ttft_p50_seconds,
        )
        for row in rows
    ]
