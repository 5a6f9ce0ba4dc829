"""How people write memory for experts, and what it comes to in bytes.

Two dialects: on a command line a size such as 2GiB or 512MB in any case (`parse_memory`); in a resource Kubernetes'
Quantity, a share or `auto` (`parse_expert_memory`). The worker gets bytes from a resource, never its text.
"""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction

from emoe.core.quantity import PATTERN, parse_quantity

AUTO = "auto"
PERCENT_PATTERN = r"(100(\.0{0,9})?|[0-9]{1,2}(\.[0-9]{1,9})?)%"
MEMORY_PATTERN = rf"^auto$|^{PERCENT_PATTERN}$|{PATTERN}"
MIN_BYTES = 64 * 1024
"""Less is a slip of the pen: 25 for 25%, 8m for 8M."""

_MEMORY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*(%|[a-zA-Z]*)")
_PREFIXES = ("", "k", "m", "g", "t", "p")
_UNITS = {
    "": 1,
    "b": 1,
    **{f"{prefix}{unit}": 1000**power for power, prefix in enumerate(_PREFIXES) if prefix for unit in ("", "b")},
    **{f"{prefix}{unit}": 1024**power for power, prefix in enumerate(_PREFIXES) if prefix for unit in ("i", "ib")},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertMemory:
    """A share of all expert bytes, or a number of bytes, or, with neither, what the worker can spare."""

    share: Fraction | None = None
    num_bytes: int | None = None

    @property
    def is_auto(self) -> bool:
        return self.share is None and self.num_bytes is None

    def resolve(self, *, all_expert_bytes: int, spare_bytes: int | None) -> int:
        """Rounded down. `spare_bytes`: what a memory limit leaves for experts; ValueError for auto without one."""
        if self.share is not None:
            return int(self.share * all_expert_bytes)
        if self.num_bytes is not None:
            return self.num_bytes
        if spare_bytes is None:
            raise ValueError("memory auto needs a memory limit to divide; set one, or write a share such as 25%")
        return min(spare_bytes, all_expert_bytes)


def parse_expert_memory(text: str) -> ExpertMemory:
    """`25%` (above 0, 100 at most), a Quantity of 64Ki or more, or `auto`. ValueError says which would do."""
    if text == AUTO:
        return ExpertMemory()
    if re.fullmatch(PERCENT_PATTERN, text, re.ASCII):
        share = Fraction(text[:-1]) / 100
        if share == 0:
            raise ValueError(f"memory {text!r} is nothing; give a share above 0%, such as 25%")
        return ExpertMemory(share=share)
    try:
        value = parse_quantity(text)
    except ValueError:
        raise ValueError(
            f"memory {text[:63]!r} is not understood; write a share up to 100% (25%), a quantity (8Gi) or auto"
        ) from None
    if value < MIN_BYTES:
        raise ValueError(f"memory {text!r} is less than 64Ki; write a share as 25%, a quantity as 8Gi or 500M")
    return ExpertMemory(num_bytes=int(value))


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
