"""`emoe bench memory`: peak anonymous memory of emoe at each budget, and of transformers, a fresh process a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emoe.bench.anonymous import anonymous_bytes, watched
from emoe.bench.children import child_process
from emoe.bench.machine import describe_machine
from emoe.bench.prompts import random_prompts, vocab_size_of
from emoe.bench.rows import MemoryRow, Report
from emoe.store.footprint import ModelFootprint, measure
from emoe.store.store import ExpertStore

CHILD = "emoe.bench.memory_child"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemorySettings:
    budgets: tuple[str, ...] = ("100%", "50%", "25%")
    prompt_tokens: int = 128
    new_tokens: int = 32
    threads: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """One child's anonymous memory, and what it says that it holds of it."""

    peak_bytes: int
    load_peak_bytes: int
    after_bytes: int
    holding: dict[str, Any]


async def bench_memory(model: Path, settings: MemorySettings, *, say: Callable[[str], None]) -> Report:
    machine = describe_machine(threads=settings.threads)
    with ExpertStore.open(model) as store:
        footprint, vocab_size = measure(store), vocab_size_of(store)
    prompt = random_prompts(1, settings.prompt_tokens, vocab_size=vocab_size, seed=0)[0]
    options = {
        "model": str(model),
        "prompt": prompt,
        "new_tokens": settings.new_tokens,
        "threads": machine.threads,
    }
    say("a bare process")
    bare = await look_at(options | {"engine": "bare"}, name="a bare process")
    rows = []
    for budget in settings.budgets:
        say(f"emoe at {budget}")
        seen = await look_at(options | {"engine": "emoe", "budget": budget}, name=f"emoe at {budget}")
        rows.append(_row("emoe", budget, seen, bare.after_bytes, footprint))
    say("transformers")
    seen = await look_at(options | {"engine": "transformers"}, name="transformers")
    rows.append(_row("transformers", "all", seen, bare.after_bytes, footprint))
    return Report(
        benchmark="memory",
        model=str(model),
        family=footprint.family,
        machine=machine,
        settings=dataclasses.asdict(settings),
        rows=tuple(rows),
    )


async def look_at(options: dict[str, object], *, name: str, prefix: tuple[str, ...] = ()) -> Seen:
    """`options` are those of `memory_child`; `prefix` as in `child_process`."""
    async with child_process(CHILD, options, name=name, prefix=prefix) as child, watched(child.pid) as watch:
        await child.ask(step="load")
        load_peak_bytes = watch.peak_bytes
        holding = await child.ask(step="generate")
        return Seen(
            peak_bytes=watch.peak_bytes,
            load_peak_bytes=load_peak_bytes,
            after_bytes=anonymous_bytes(child.pid),
            holding=holding,
        )


def _row(engine: str, budget: str, seen: Seen, bare_bytes: int, footprint: ModelFootprint) -> MemoryRow:
    slot_bytes = int(seen.holding.get("slot_bytes", footprint.all_expert_bytes))
    kv_bytes = int(seen.holding["kv_bytes"])
    return MemoryRow(
        engine=engine,
        budget=budget,
        peak_bytes=seen.peak_bytes,
        load_peak_bytes=seen.load_peak_bytes,
        after_bytes=seen.after_bytes,
        bare_bytes=bare_bytes,
        base_bytes=footprint.base_bytes,
        slot_bytes=slot_bytes,
        kv_bytes=kv_bytes,
        overhead_bytes=seen.peak_bytes - bare_bytes - footprint.base_bytes - slot_bytes - kv_bytes,
    )
