"""What `emoe inspect` prints for people."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from emoe.cli.footprint import BudgetRow
from emoe.store.footprint import ModelFootprint


def print_tables(model: Path, footprint: ModelFootprint, kv_bytes: int | None, rows: tuple[BudgetRow, ...]) -> None:
    console = Console(highlight=False)
    console.print(f"[bold]{model.name}[/] ({footprint.family}, {_dtypes(footprint)})")
    console.print(_facts(footprint, kv_bytes))
    console.print(_budgets(footprint, rows))


def _dtypes(footprint: ModelFootprint) -> str:
    plain = footprint.expert_format == footprint.dtype
    return footprint.dtype if plain else f"experts in {footprint.expert_format}, computed in {footprint.dtype}"


def _facts(footprint: ModelFootprint, kv_bytes: int | None) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    num_dense = footprint.num_layers - len(footprint.moe_layers)
    dense = f", and {num_dense} dense" if num_dense else ""
    table.add_row(
        "layers", f"{len(footprint.moe_layers)} with {footprint.num_experts} experts, top {footprint.top_k}{dense}"
    )
    table.add_row("experts", f"{footprint.num_experts_total} of {format_bytes(footprint.expert_bytes)} each")
    share = f"{footprint.expert_share_ratio:.1%} of the model"
    table.add_row("expert bytes", f"{format_bytes(footprint.all_expert_bytes)} ({share})")
    table.add_row("base bytes", f"{format_bytes(footprint.base_bytes)}, always in memory")
    table.add_row("KV", "not derivable from the config" if kv_bytes is None else f"{format_bytes(kv_bytes)} a token")
    return table


def _budgets(footprint: ModelFootprint, rows: tuple[BudgetRow, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("budget", "expert memory", "slots"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for row in rows:
        note = f"{row.num_staging} of them for staging" if row.num_staging else ""
        if row.calibration_bytes:
            note += f", {format_bytes(row.calibration_bytes)} for the calibration"
        if not row.is_enough:
            note = f"too few: it takes {row.min_slots}"
        table.add_row(
            row.budget, format_bytes(row.budget_bytes), f"{row.num_slots}/{footprint.num_experts_total}", note
        )
    return table


def format_bytes(num_bytes: int) -> str:
    """1024-based, as `--expert-memory` takes it."""
    size, unit = float(num_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{num_bytes} B" if unit == "B" else f"{size:.2f} {unit}"
