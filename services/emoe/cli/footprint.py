"""`emoe inspect`: what a model takes and what a memory budget buys of it, from the checkpoint's headers alone."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from emoe.cli.failures import CommandError
from emoe.core.budget import slot_bytes, split_budget
from emoe.core.errors import CheckpointError
from emoe.core.experts import ExpertGrid
from emoe.core.memory import parse_memory
from emoe.store.calibration import calibration_beside
from emoe.store.footprint import ModelFootprint, kv_bytes_per_token, measure
from emoe.store.store import ExpertStore
from emoe.store.tensors import DTYPE_BITS

DEFAULT_BUDGETS = ("100%", "50%", "25%")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BudgetRow:
    """`num_slots` has the staging slots in it; `min_slots` is what the miss policy needs at least.

    `calibration_bytes` of the budget are no slots.
    """

    budget: str
    budget_bytes: int
    num_slots: int
    num_staging: int
    min_slots: int
    is_enough: bool
    calibration_bytes: int


def print_footprint(model: Path, budgets: tuple[str, ...], *, as_json: bool, reroute: bool) -> None:
    with ExpertStore.open(model) as store:
        footprint = measure(store)
        kv_bytes = kv_bytes_per_token(store.config, bits=DTYPE_BITS[footprint.dtype])
        reserved_bytes = used_calibration_bytes(store) if reroute else 0
        rows = tuple(
            _budget_row(budget, store.grid, reroute=reroute, reserved_bytes=reserved_bytes)
            for budget in budgets or DEFAULT_BUDGETS
        )
    if as_json:
        print(json.dumps(_describe(model, footprint, kv_bytes, rows)))
        return
    from emoe.cli.footprint_table import print_tables

    print_tables(model, footprint, kv_bytes, rows)


def used_calibration_bytes(store: ExpertStore) -> int:
    """Of the calibration beside the model; 0, and a word why, for one that a worker would leave out."""
    try:
        info = calibration_beside(store)
    except CheckpointError as error:
        print(f"the calibration is left out: {error}", file=sys.stderr)
        return 0
    return info.num_bytes if info else 0


def _budget_row(budget: str, grid: ExpertGrid, *, reroute: bool, reserved_bytes: int) -> BudgetRow:
    try:
        budget_bytes = parse_memory(budget, total_bytes=grid.num_experts_total * slot_bytes(grid))
    except ValueError as error:
        raise CommandError(f"--expert-memory: {error}") from error
    split = split_budget(grid, budget_bytes=budget_bytes, reroute=reroute, reserved_bytes=reserved_bytes)
    return BudgetRow(
        budget=budget,
        budget_bytes=budget_bytes,
        num_slots=split.num_slots,
        num_staging=split.num_staging,
        min_slots=split.min_slots,
        is_enough=split.is_enough,
        calibration_bytes=split.reserved_bytes,
    )


def _describe(
    model: Path, footprint: ModelFootprint, kv_bytes: int | None, rows: tuple[BudgetRow, ...]
) -> dict[str, Any]:
    return {
        "model": str(model),
        **dataclasses.asdict(footprint),
        "num_experts_total": footprint.num_experts_total,
        "all_expert_bytes": footprint.all_expert_bytes,
        "total_bytes": footprint.total_bytes,
        "expert_share_ratio": footprint.expert_share_ratio,
        "kv_bytes_per_token": kv_bytes,
        "budgets": [dataclasses.asdict(row) for row in rows],
    }
