"""`emoe bench engine`: emoe's engine with all experts resident against transformers, in one process, turn by turn.

Every contestant gets the same prompts and the same threads, and each repeat begins with another one, so that what the
machine does beside it falls on all alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from emoe.bench.engines import fill, new_sequence, open_parts
from emoe.bench.failures import BenchmarkError
from emoe.bench.machine import describe_machine
from emoe.bench.prompts import random_prompts, vocab_size_of
from emoe.bench.reference import load_reference, time_generate
from emoe.bench.rows import EngineRow, Report, Timing
from emoe.store.store import ExpertStore
from emoe.worker.build import EngineOptions
from emoe.worker.engine import Engine

OURS, THEIRS = "emoe", "transformers"
WARM_UP_TOKENS = 2
RATES = ("prefill", "decode", "total")

Contestant = Callable[[list[list[int]], int], Timing]
"""(prompts, new tokens of each)"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineSettings:
    batches: tuple[int, ...] = (1, 8, 32)
    prompt_tokens: int = 128
    new_tokens: int = 48
    repeats: int = 5
    threads: int | None = None
    miss_policies: tuple[str, ...] = ("load", "reroute")
    experts_functions: tuple[str, ...] = ("eager", "grouped_mm")

    def __post_init__(self) -> None:
        if self.new_tokens < 2:
            raise BenchmarkError(f"--new-tokens must be at least 2 to time decoding, not {self.new_tokens}")


def bench_engine(model: Path, settings: EngineSettings, *, say: Callable[[str], None]) -> Report:
    machine = describe_machine(threads=settings.threads)
    torch.set_num_threads(machine.threads)
    with ExpertStore.open(model) as store:
        family, vocab_size = store.family, vocab_size_of(store)
    rows: list[EngineRow] = []
    with contextlib.ExitStack() as stack:
        contestants = _open_contestants(model, settings, stack, say=say)
        for batch in settings.batches:
            prompts = random_prompts(batch, settings.prompt_tokens, vocab_size=vocab_size, seed=batch)
            samples = _take_turns(contestants, prompts, settings, say=say)
            rows += compare([_row(*names, prompts, settings, taken) for names, taken in samples.items()])
    return Report(
        benchmark="engine",
        model=str(model),
        family=family,
        machine=machine,
        settings=dataclasses.asdict(settings),
        rows=tuple(rows),
    )


def _open_contestants(
    model: Path, settings: EngineSettings, stack: contextlib.ExitStack, *, say: Callable[[str], None]
) -> dict[tuple[str, str], Contestant]:
    contestants: dict[tuple[str, str], Contestant] = {}
    for policy in settings.miss_policies:
        say(f"loading {OURS}, {policy}")
        options = EngineOptions(
            expert_memory="100%",
            miss_policy=policy,
            max_context=settings.prompt_tokens + settings.new_tokens,
            max_concurrency=max(settings.batches),
        )
        parts = stack.enter_context(open_parts(model, options))
        fill(parts)
        contestants[OURS, policy] = functools.partial(time_engine, parts.build_engine())
    say(f"loading {THEIRS}")
    reference = load_reference(model)

    def run_reference(function: str, prompts: list[list[int]], new_tokens: int) -> Timing:
        reference.set_experts_implementation(function)
        return time_generate(reference, prompts, new_tokens=new_tokens)

    for function in settings.experts_functions:
        contestants[THEIRS, function] = functools.partial(run_reference, function)
    return contestants


def time_engine(engine: Engine, prompts: list[list[int]], new_tokens: int) -> Timing:
    """All prompts at once."""
    began = time.perf_counter()
    for number, prompt in enumerate(prompts):
        engine.add(new_sequence(str(number), prompt, new_tokens=new_tokens))
    waiting = {str(number) for number in range(len(prompts))}
    prefilled = began
    while engine.has_work:
        events = engine.step()
        if any(event.error for event in events):
            raise BenchmarkError(f"the engine failed: {next(event.error for event in events if event.error)}")
        if waiting:
            waiting.difference_update(event.sequence.sequence_id for event in events)
            prefilled = time.perf_counter()
    return Timing(prefill_seconds=prefilled - began, total_seconds=time.perf_counter() - began)


def _take_turns(
    contestants: dict[tuple[str, str], Contestant],
    prompts: list[list[int]],
    settings: EngineSettings,
    *,
    say: Callable[[str], None],
) -> dict[tuple[str, str], list[Timing]]:
    names = list(contestants)
    samples: dict[tuple[str, str], list[Timing]] = {name: [] for name in names}
    for contestant in contestants.values():
        contestant(prompts, WARM_UP_TOKENS)
    for repeat in range(settings.repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(contestants[name](prompts, settings.new_tokens))
        say(f"batch {len(prompts)}: repeat {repeat + 1} of {settings.repeats}")
    return samples


def _row(
    engine: str, mode: str, prompts: list[list[int]], settings: EngineSettings, samples: Sequence[Timing]
) -> EngineRow:
    batch, new_tokens = len(prompts), settings.new_tokens
    prefill = statistics.median(s.prefill_seconds for s in samples)
    decode = statistics.median(s.total_seconds - s.prefill_seconds for s in samples)
    total = statistics.median(s.total_seconds for s in samples)
    return EngineRow(
        engine=engine,
        mode=mode,
        batch=batch,
        prefill_tokens_per_second=batch * settings.prompt_tokens / prefill,
        decode_tokens_per_second=batch * (new_tokens - 1) / decode,
        total_tokens_per_second=batch * new_tokens / total,
        samples=tuple(samples),
    )


def compare(rows: Sequence[EngineRow]) -> list[EngineRow]:
    """One batch's rows, ours with their ratios to the better one of theirs, rate by rate."""
    best = {
        rate: max((getattr(row, f"{rate}_tokens_per_second") for row in rows if row.engine == THEIRS), default=None)
        for rate in RATES
    }

    def compared(row: EngineRow) -> EngineRow:
        ratios = {
            f"{rate}_ratio": getattr(row, f"{rate}_tokens_per_second") / theirs
            for rate, theirs in best.items()
            if theirs
        }
        return dataclasses.replace(row, **ratios) if row.engine == OURS else row

    return [compared(row) for row in rows]
