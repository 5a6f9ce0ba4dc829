"""What `emoe bench transfer` gives: a row an expert size and a way of moving experts, each repeat among its samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from emoe.bench.rows import Machine


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moved:
    """One repeat. Processor time is that of both ends together."""

    num_bytes: int
    wall_seconds: float
    processor_seconds: float
    expert_seconds: float
    """The median of one expert's, from the question to the last byte."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferRow:
    """Medians. `tcp_ratio`: of the rate to that of the faster plain TCP copy of this size, repeat by repeat."""

    expert_bytes: int
    way: str
    connections: int
    gib_per_second: float
    tcp_ratio: float
    processor_seconds_per_gib: float
    expert_p50_seconds: float
    samples: tuple[Moved, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferReport:
    benchmark: str
    machine: Machine
    settings: Mapping[str, object]
    rows: tuple[TransferRow, ...]
