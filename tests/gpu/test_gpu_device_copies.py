"""`emoe bench transfer --device` on a real device: every way moves every byte."""

from __future__ import annotations

import pytest
import torch

from emoe.bench.device_copies import AT_HAND, PINNED, READ, CopySettings, bench_device_copies

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch sees none"),
]


def test_each_way_copies_all_experts_in_each_repeat() -> None:
    settings = CopySettings(expert_bytes=(24 << 10,), threads=2, moved_bytes=96 << 10, repeats=2)
    report = bench_device_copies(settings, "cuda:0", say=lambda _: None)
    assert [row.way for row in report.rows] == [PINNED, AT_HAND, READ]
    assert {one.num_bytes for row in report.rows for one in row.samples} == {96 << 10}
    assert report.rows[0].pinned_ratio == 1.0
    assert report.device == torch.cuda.get_device_name(0)
