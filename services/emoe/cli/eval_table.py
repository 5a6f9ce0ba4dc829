"""What an evaluation found, as tables for people: the columns of each kind of row, and how a figure is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from emoe.cli.footprint_table import format_bytes

if TYPE_CHECKING:
    from emoe.eval.ablation_lab import AblationRow
    from emoe.eval.measures import GapRow, QualityRow
    from emoe.eval.replay import ReplayRow
    from emoe.eval.routing_eval import RoutingRow

Columns = Mapping[str, Callable[[Any], str]]


def build_columns(rows: Sequence[object], columns: Columns, *, num_text: int) -> Table:
    """The first `num_text` columns are words; a heading of several words stands in as many lines."""
    table = Table(box=None, pad_edge=False)
    for place, heading in enumerate(columns):
        table.add_column(heading.replace(" ", "\n"), justify="left" if place < num_text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(write(row) for write in columns.values()))
    return table


def quality_table(rows: Sequence[QualityRow], gaps: Sequence[GapRow]) -> Table:
    """`gaps` of the same strategies, loads and shares stand beside them."""
    gap_of = {(gap.load, gap.strategy, gap.resident_ratio): gap for gap in gaps}

    def gap(row: QualityRow, name: str) -> float | None:
        found = gap_of.get((row.load, row.strategy, row.resident_ratio))
        return None if found is None else getattr(found, name)

    columns: Columns = {
        "load": lambda row: row.load,
        "strategy": lambda row: row.strategy,
        "resi- dent": lambda row: f"{row.resident_ratio:.0%}",
        "perple- xity": lambda row: f"{row.perplexity:.2f}",
        "perplexity ratio": lambda row: f"{row.perplexity_ratio:.3f}",
        "gap closed": lambda row: percent(gap(row, "perplexity_gap_closed")),
        "exact match": lambda row: figure(row.exact_match),
        "simi- larity": lambda row: figure(row.similarity),
        "cover- age": lambda row: figure(row.coverage),
        "its gap closed": lambda row: percent(gap(row, "coverage_gap_closed")),
        "hit ratio": lambda row: figure(row.hit_ratio),
        "moved a request": lambda row: format_bytes(row.bytes_moved),
        "refresh": lambda row: f"{row.refresh_seconds * 1000:.1f} ms",
    }
    return build_columns(rows, columns, num_text=2)


def routing_table(rows: Sequence[RoutingRow]) -> Table:
    columns: Columns = {
        "strategy": lambda row: row.strategy,
        "unseen": lambda row: row.unseen,
        "chosen": lambda row: "once" if row.refresh_tokens is None else f"every {row.refresh_tokens}",
        "resi- dent": lambda row: f"{row.resident_ratio:.0%}",
        "cover- age": lambda row: figure(row.coverage),
        "gap closed": lambda row: percent(row.coverage_gap_closed),
        "hit ratio": lambda row: figure(row.hit_ratio),
    }
    return build_columns(rows, columns, num_text=3)


def ablation_table(rows: Sequence[AblationRow]) -> Table:
    columns: Columns = {
        "study": lambda row: row.study,
        "mix": lambda row: row.mix,
        "strategy": lambda row: row.strategy,
        "of": lambda row: row.knob,
        "": lambda row: f"{row.value:g}" if row.knob != "resident_ratio" else f"{row.value:.0%}",
        "resi- dent": lambda row: f"{row.resident_ratio:.0%}",
        "perplexity ratio": lambda row: f"{row.perplexity_ratio:.3f}",
        "cover- age": lambda row: figure(row.coverage),
        "hit ratio": lambda row: figure(row.hit_ratio),
        "moved a request": lambda row: format_bytes(row.bytes_moved),
        "requests": lambda row: str(row.num_requests),
    }
    return build_columns(rows, columns, num_text=4)


def replay_table(rows: Sequence[ReplayRow]) -> Table:
    columns: Columns = {
        "strategy": lambda row: row.strategy,
        "workers": lambda row: f"{row.num_workers} {row.placement}".rstrip(),
        "resi- dent": lambda row: f"{row.resident_ratio:.0%}",
        "of": lambda row: row.task if row.window_seconds is None else "{:.0f}-{:.0f} s".format(*row.window_seconds),
        "requests": lambda row: str(row.num_requests),
        "failed": lambda row: str(row.num_failed),
        "hit ratio": lambda row: figure(row.hit_ratio),
        "exact match": lambda row: figure(row.exact_match),
        "TTFT p50": lambda row: milliseconds(row.ttft_p50_seconds),
        "TTFT p99": lambda row: milliseconds(row.ttft_p99_seconds),
        "tokens/s": lambda row: f"{row.tokens_per_second:.0f}",
        "moved": lambda row: "" if row.bytes_moved is None else format_bytes(row.bytes_moved),
        "cluster covers": lambda row: figure(row.cluster_coverage),
        "sent to": lambda row: figure(row.sent_coverage),
        "distinct experts": lambda row: "-" if row.distinct_experts is None else f"{row.distinct_experts:.0f}",
    }
    return build_columns(rows, columns, num_text=4)


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """Of a gap: what is worse than twice as far from its end as where it begins is only said to be so."""
    if value is None:
        return "-"
    return "< -100%" if value < -1 else f"{round(value, 2) + 0.0:.0%}"
