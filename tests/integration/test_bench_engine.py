"""The benchmarks of the engine, over small checkpoints: that they measure what they name, not how fast it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from emoe.bench.engine import EngineSettings, bench_engine
from emoe.bench.reads import ReadSettings, bench_reads
from emoe.bench.rows import EngineRow, ReadRow


@pytest.fixture(autouse=True)
def _same_threads_afterwards() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_both_engines_are_timed_on_the_same_batches(checkpoint: Callable[[str], Path]) -> None:
    said: list[str] = []
    settings = EngineSettings(batches=(1, 3), prompt_tokens=8, new_tokens=4, repeats=2, threads=1)
    report = bench_engine(checkpoint("qwen2_moe"), settings, say=said.append)
    rows = [row for row in report.rows if isinstance(row, EngineRow)]
    modes = [("emoe", "load"), ("emoe", "reroute"), ("transformers", "eager"), ("transformers", "grouped_mm")]
    assert [(row.engine, row.mode, row.batch) for row in rows] == [(*mode, n) for n in (1, 3) for mode in modes]
    for row in rows:
        assert len(row.samples) == 2
        assert all(0 < timing.prefill_seconds < timing.total_seconds for timing in row.samples)
        assert (row.total_ratio is not None) == (row.engine == "emoe")
    assert report.machine.threads == 1
    assert "batch 3: repeat 2 of 2" in said


@pytest.mark.parametrize(("family", "num_experts"), [("mixtral", 6), ("deepseek_v3", 6)])
def test_a_cold_token_reads_just_the_experts_that_it_needs(
    family: str, num_experts: int, checkpoint: Callable[[str], Path]
) -> None:
    report = bench_reads(checkpoint(family), ReadSettings(num_tokens=2, threads=1), say=lambda _line: None)
    rows = [row for row in report.rows if isinstance(row, ReadRow)]
    assert [(row.token, row.num_experts, row.asked_ratio) for row in rows] == [
        (1, num_experts, 1.0),
        (2, num_experts, 1.0),
    ]
    assert all(row.needed_bytes > 0 for row in rows)
