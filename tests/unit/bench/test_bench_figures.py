"""What a benchmark makes of its samples, and what it asks."""

from __future__ import annotations

import pytest

from emoe.bench import engine, services
from emoe.bench.engines import first_experts
from emoe.bench.failures import BenchmarkError
from emoe.bench.prompts import random_prompts
from emoe.bench.reads import row_between
from emoe.bench.rows import EngineRow, ServiceRow
from emoe.core.experts import ExpertGrid, RoutingRule
from emoe.store.store import ReadCounters


def engine_row(name: str, mode: str, prefill: float, decode: float, total: float) -> EngineRow:
    return EngineRow(
        engine=name,
        mode=mode,
        batch=1,
        prefill_tokens_per_second=prefill,
        decode_tokens_per_second=decode,
        total_tokens_per_second=total,
        samples=(),
    )


def service_row(path: str, tokens_per_second: float, ttft_p50_seconds: float) -> ServiceRow:
    return ServiceRow(
        path=path,
        clients=1,
        tokens_per_second=tokens_per_second,
        ttft_p50_seconds=ttft_p50_seconds,
        tokens_ratio=None,
        ttft_ratio=None,
        samples=(),
    )


def read_counters(asked: int, device: int | None) -> ReadCounters:
    return ReadCounters(num_bytes_asked=asked, num_reads=0, num_device_bytes=device)


def test_an_engine_is_compared_with_the_better_reference_rate_by_rate() -> None:
    rows = [
        engine_row("emoe", "load", 90.0, 50.0, 60.0),
        engine_row("transformers", "eager", 100.0, 20.0, 30.0),
        engine_row("transformers", "grouped_mm", 10.0, 40.0, 20.0),
    ]
    ours, *theirs = engine.compare(rows)
    assert (ours.prefill_ratio, ours.decode_ratio, ours.total_ratio) == (0.9, 1.25, 2.0)
    assert theirs == rows[1:]


def test_services_are_compared_with_the_engine_alone() -> None:
    rows = [service_row("engine", 100.0, 0.5), service_row("scheduler", 95.0, 0.6)]
    alone, scheduler = services.compare(rows)
    assert alone == rows[0]
    assert (scheduler.tokens_ratio, scheduler.ttft_ratio) == (0.95, 1.2)


@pytest.mark.parametrize(
    ("device", "device_ratio"), [((10, 260), 1.25), ((None, None), None)], ids=["told", "not told"]
)
def test_reads_are_counted_between_two_moments(
    device: tuple[int | None, int | None], device_ratio: float | None
) -> None:
    row = row_between(read_counters(40, device[0]), read_counters(260, device[1]), token=1, num_experts=4, num_bytes=50)
    assert (row.needed_bytes, row.asked_bytes, row.asked_ratio) == (200, 220, 1.1)
    assert row.device_ratio == device_ratio


def test_prompts_differ_from_each_other_and_are_the_same_again() -> None:
    prompts = random_prompts(3, 8, vocab_size=50, seed=1)
    assert prompts == random_prompts(3, 8, vocab_size=50, seed=1)
    assert len({tuple(prompt) for prompt in prompts}) == 3
    assert all(len(prompt) == 8 and 0 <= min(prompt) <= max(prompt) < 50 for prompt in prompts)


def test_exact_mode_is_filled_layer_by_layer() -> None:
    grid = ExpertGrid(num_layers=3, moe_layers=(1, 2), rule=RoutingRule(num_experts=4, top_k=2), expert_bytes=8)
    assert first_experts(grid, 5).sum(axis=1).tolist() == [0, 4, 1]
    assert first_experts(grid, 8).tolist() == grid.all_experts().tolist()


def test_decoding_cannot_be_timed_with_one_token() -> None:
    with pytest.raises(BenchmarkError, match="--new-tokens"):
        engine.EngineSettings(new_tokens=1)
