"""`emoe bench reads`: what a token costs the disk when every expert that it needs is cold.

Before each token the slots are emptied and the checkpoint's pages are dropped from the page cache, so that each of its
experts is read once, from the device.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import torch

from emoe.bench.engines import new_sequence
from emoe.bench.machine import describe_machine
from emoe.bench.prompts import random_prompts, vocab_size_of
from emoe.bench.rows import ReadRow, Report
from emoe.core.budget import slot_bytes
from emoe.store.store import ExpertStore, ReadCounters
from emoe.worker.build import EngineOptions, build_parts
from emoe.worker.engine import Engine
from emoe.worker.residency import Residency
from emoe.worker.sources import LocalSource

MAX_CONTEXT = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadSettings:
    num_tokens: int = 3
    threads: int | None = None


def bench_reads(model: Path, settings: ReadSettings, *, say: Callable[[str], None]) -> Report:
    machine = describe_machine(threads=settings.threads)
    torch.set_num_threads(machine.threads)
    with ExpertStore.open(model) as store:
        engine = _open_engine(store)
        _answer(engine, store, seed=0, num_tokens=settings.num_tokens)  # code is paged in and checksums are kept
        rows = []
        prompt = random_prompts(1, 1, vocab_size=vocab_size_of(store), seed=1)[0]
        engine.add(new_sequence("cold", prompt, new_tokens=settings.num_tokens))
        for token in range(1, settings.num_tokens + 1):
            say(f"token {token} of {settings.num_tokens}")
            rows.append(_read_token(engine, store, token))
        family = store.family
    return Report(
        benchmark="reads",
        model=str(model),
        family=family,
        machine=machine,
        settings=dataclasses.asdict(settings),
        rows=tuple(rows),
    )


def _open_engine(store: ExpertStore) -> Engine:
    """With slots for just one token's experts."""
    grid = store.grid
    options = EngineOptions(
        expert_memory=str(grid.rule.top_k * len(grid.moe_layers) * slot_bytes(grid)),
        miss_policy="load",
        max_context=MAX_CONTEXT,
        max_concurrency=1,
    )
    parts = build_parts(store, LocalSource(store), options)
    return dataclasses.replace(parts, eos_token_ids=frozenset()).build_engine()


def _answer(engine: Engine, store: ExpertStore, *, seed: int, num_tokens: int) -> None:
    prompt = random_prompts(1, 1, vocab_size=vocab_size_of(store), seed=seed)[0]
    engine.add(new_sequence("warm", prompt, new_tokens=num_tokens))
    while engine.has_work:
        engine.step()


def _read_token(engine: Engine, store: ExpertStore, token: int) -> ReadRow:
    empty_slots(engine.residency)
    drop_page_cache(store.folder)
    engine.task_counts.clear()
    before = store.counters
    engine.step()
    num_experts = sum(int((counts > 0).sum()) for counts in engine.task_counts.values())
    return row_between(before, store.counters, token=token, num_experts=num_experts, num_bytes=store.layout.num_bytes)


def row_between(before: ReadCounters, after: ReadCounters, *, token: int, num_experts: int, num_bytes: int) -> ReadRow:
    """`num_bytes` of each expert."""
    needed_bytes = num_experts * num_bytes
    asked_bytes = after.num_bytes_asked - before.num_bytes_asked
    device_bytes = None
    if after.num_device_bytes is not None and before.num_device_bytes is not None:
        device_bytes = after.num_device_bytes - before.num_device_bytes
    return ReadRow(
        token=token,
        num_experts=num_experts,
        needed_bytes=needed_bytes,
        asked_bytes=asked_bytes,
        device_bytes=device_bytes,
        asked_ratio=asked_bytes / needed_bytes,
        device_ratio=None if device_bytes is None else device_bytes / needed_bytes,
    )


def empty_slots(residency: Residency) -> None:
    for expert in list(residency.table.residents()):
        residency.table.evict(expert)
    residency.version += 1


def drop_page_cache(folder: Path) -> None:
    """Of the weight files. Pages not yet written cannot be dropped, so they are written first."""
    for path in sorted(folder.glob("*.safetensors")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
