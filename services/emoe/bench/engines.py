"""emoe's engine as the benchmarks drive it: opened with its experts in place, and with no token that ends an answer."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

from emoe.bench.failures import BenchmarkError
from emoe.core.experts import BoolGrid, ExpertGrid, from_grid, to_grid
from emoe.core.generation import Sampling
from emoe.store.store import ExpertStore
from emoe.worker.build import EngineOptions, EngineParts, bootstrap_plan, build_parts
from emoe.worker.sequence import Sequence
from emoe.worker.sources import LocalSource

FILL_SECONDS = 600.0


@contextlib.contextmanager
def open_parts(model: Path, options: EngineOptions) -> Iterator[EngineParts]:
    """Empty slots; see `fill`."""
    with ExpertStore.open(model) as store:
        parts = build_parts(store, LocalSource(store), options)
        yield dataclasses.replace(parts, eos_token_ids=frozenset())


def fill(parts: EngineParts) -> None:
    """Brings in as many experts as there are slots for, and waits for them."""
    residency = parts.residency
    reroute = parts.options.miss_policy == "reroute"
    plan = bootstrap_plan if reroute else first_experts
    residency.set_plan(plan(residency.grid, residency.plan_slots), epoch=1)
    residency.wait_until_settled(timeout_seconds=FILL_SECONDS)
    if residency.failed:
        raise BenchmarkError(f"{len(residency.failed)} experts cannot be loaded, as the log says; mend the checkpoint")


def first_experts(grid: ExpertGrid, num_slots: int) -> BoolGrid:
    """In the order of layers: exact mode needs no layer to be routable."""
    return to_grid(itertools.islice(from_grid(grid.all_experts()), num_slots), grid.shape)


def new_sequence(name: str, prompt: list[int], *, new_tokens: int) -> Sequence:
    """Greedy."""
    return Sequence(
        sequence_id=name,
        task="bench",
        token_ids=list(prompt),
        num_prompt_tokens=len(prompt),
        sampling=Sampling(max_tokens=new_tokens, ignore_eos=True),
        seed=0,
    )
