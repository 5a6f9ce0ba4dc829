"""What a model takes, and what a memory budget buys of it: the arithmetic behind `emoe inspect` and `--expert-memory`.

Pure: looks at an open store's index, reads no weights.
"""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction

from emoe.store.store import ExpertStore


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFootprint:
    family: str
    dtype: str
    num_layers: int
    moe_layers: tuple[int, ...]
    num_experts: int
    """In each MoE layer."""
    top_k: int
    expert_bytes: int
    """Of one expert: the size of a slot."""
    base_bytes: int
    """Of everything but routed experts."""
    """The fewest with which every token finds its experts in every layer."""

    @property
    def num_experts_total(self) -> int:
        return len(self.moe_layers) * self.num_experts

    @property
    def all_expert_bytes(self) -> int:
        return self.num_experts_total * self.expert_bytes

    @property
    def total_bytes(self) -> int:
        return self.all_expert_bytes + self.base_bytes

    @property
    def expert_share_ratio(self) -> float:
        """Experts' part of all bytes, 0 to 1."""
        return self.all_expert_bytes / self.total_bytes


def measure(store: ExpertStore) -> ModelFootprint:
    grid = store.grid
    return ModelFootprint(
        family=store.family,
        dtype=store.dtype,
        num_layers=grid.num_layers,
        moe_layers=grid.moe_layers,
        num_experts=grid.rule.num_experts,
        top_k=grid.rule.top_k,
        expert_bytes=grid.expert_bytes,
        base_bytes=sum(entry.num_bytes for entry in store.base_tensors.values()),
    )


_MEMORY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*(%|[a-zA-Z]*)")
_PREFIXES = ("", "k", "m", "g", "t", "p")
_UNITS = {
    "": 1,
    "b": 1,
    **{f"{prefix}{unit}": 1000**power for power, prefix in enumerate(_PREFIXES) if prefix for unit in ("", "b")},
    **{f"{prefix}{unit}": 1024**power for power, prefix in enumerate(_PREFIXES) if prefix for unit in ("i", "ib")},
}


def parse_memory(text: str, *, total_bytes: int) -> int:
    """`25%` of `total_bytes` (all experts), `2GiB` or `2Gi` (1024), `512MB` or `512M` (1000), `1024` (bytes) -> bytes.

    Rounded down. ValueError for anything else, and for less than one byte.
    """
    match = _MEMORY.fullmatch(text.strip())
    unit = match[2].lower() if match else None
    if match is None or (unit != "%" and unit not in _UNITS):
        raise ValueError(f"memory {text!r} is not understood; write it like 25%, 2GiB, 512MB or 1073741824 (bytes)")
    scale = Fraction(total_bytes, 100) if unit == "%" else Fraction(_UNITS[str(unit)])
    num_bytes = int(Fraction(match[1]) * scale)
    if num_bytes < 1:
        raise ValueError(f"memory {text!r} is less than one byte; give more, such as 25% or 2GiB")
    return num_bytes
