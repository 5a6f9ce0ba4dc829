"""How a budget of bytes becomes expert slots: one rule for the worker that makes them and for whoever asks before."""

from __future__ import annotations

import dataclasses

from emoe.core.errors import BudgetError
from emoe.core.experts import ExpertGrid

SLOT_ALIGNMENT_BYTES = 64
"""Slots start on cache lines, so that a kernel's arithmetic never depends on the slot."""
MIN_STAGING_SLOTS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlotBudget:
    """`num_staging` of the slots are kept out of plans: newcomers land there while those they replace still serve.

    `reserved_bytes` of the budget went to a calibration before slots were counted.
    """

    num_slots: int
    num_staging: int
    min_slots: int
    slot_bytes: int
    reserved_bytes: int = 0

    @property
    def num_bytes(self) -> int:
        return self.num_slots * self.slot_bytes

    @property
    def is_enough(self) -> bool:
        return self.num_slots >= self.min_slots

    def check(self) -> None:
        """BudgetError, with the bytes that would do."""
        if not self.is_enough:
            raise BudgetError(
                f"the expert memory holds {self.num_slots} experts of {self.slot_bytes} bytes; this model needs at "
                f"least {self.min_slots}: raise it to {self.min_slots * self.slot_bytes} bytes"
            )


def slot_bytes(grid: ExpertGrid) -> int:
    return -(-grid.expert_bytes // SLOT_ALIGNMENT_BYTES) * SLOT_ALIGNMENT_BYTES


def split_budget(grid: ExpertGrid, *, budget_bytes: int, reroute: bool, reserved_bytes: int = 0) -> SlotBudget:
    """Rerouting needs a routable set in every layer and staging beside it; exact mode one token's experts.

    `reserved_bytes`, a calibration's, are taken from the budget first, in reroute mode alone; not where all experts
    fit, so that nothing is ever rerouted, nor where the slots that must be would not.
    """
    total, stride = grid.num_experts_total, slot_bytes(grid)
    staging = max(MIN_STAGING_SLOTS, grid.rule.min_residents_per_group if grid.rule.num_groups > 1 else 0)
    least = grid.rule.min_residents * len(grid.moe_layers) + staging if reroute else grid.rule.top_k
    min_slots = min(least, total)
    is_used = reroute and budget_bytes // stride < total and budget_bytes - reserved_bytes >= min_slots * stride
    reserved_bytes = reserved_bytes if is_used else 0
    num_slots = min((budget_bytes - reserved_bytes) // stride, total)
    return SlotBudget(
        num_slots=num_slots,
        num_staging=staging if reroute and num_slots < total else 0,
        min_slots=min_slots,
        slot_bytes=stride,
        reserved_bytes=reserved_bytes,
    )
