"""`emoe bench transfer` on experts of a few KiB: every way moves every byte, and says so."""

from __future__ import annotations

from emoe.bench.transfer import TransferSettings, bench_transfer


async def test_each_way_moves_all_experts_in_each_repeat() -> None:
    settings = TransferSettings(expert_bytes=(24 << 10,), connections=2, moved_bytes=96 << 10, repeats=2)
    report = await bench_transfer(settings, say=lambda _: None)
    ways = ["plain tcp, one stream", "plain tcp", "plain tcp, asked", "calls", "bulk", "passed files", "own files"]
    assert [row.way for row in report.rows] == ways
    assert {row.expert_bytes for row in report.rows} == {24 << 10}
    assert {moved.num_bytes for row in report.rows for moved in row.samples} == {96 << 10}
    assert all(len(row.samples) == 2 and row.gib_per_second > 0 for row in report.rows)
    assert 1.0 in {row.tcp_ratio for row in report.rows[:2]}
