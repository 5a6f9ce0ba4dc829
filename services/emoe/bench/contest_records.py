"""What a contest was asked and what it has so far: filled turn by turn, so that a run may be broken off."""

from __future__ import annotations

import dataclasses

from emoe.bench.contestants import Contestant
from emoe.bench.rows import ContestSample


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContestSettings:
    """`memory_cap`: of each process, page cache included; a size or a share of the checkpoint's bytes."""

    budgets: tuple[float, ...]
    policies: tuple[str, ...]
    peers: tuple[str, ...]
    batches: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int
    repeats: int
    threads: int
    memory_cap: str | None = None


@dataclasses.dataclass(kw_only=True)
class Record:
    """One contestant's measurements so far. `bytes_read`: of its first turn."""

    contestant: Contestant
    samples: dict[int, list[ContestSample]] = dataclasses.field(default_factory=dict)
    peak_anon_bytes: int = 0
    bytes_read: int | None = None
    logits: list[float] | None = None
    failed: str | None = None


@dataclasses.dataclass(kw_only=True)
class Results:
    """Of one model; filled as the run goes on."""

    name: str
    records: list[Record] = dataclasses.field(default_factory=list)
    reference_logits: list[float] | None = None
    memory_cap_bytes: int | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
