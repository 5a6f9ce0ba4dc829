"""`emoe bench transfer --device`: what it compares, and that the loads that it times fill slots."""

from __future__ import annotations

import concurrent.futures
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from emoe.bench.device_copies import AT_HAND, PINNED, Copied, load_experts, rows_of
from emoe.bench.transfer_model import write_experts
from emoe.cli.commands import app
from emoe.core.experts import from_grid
from emoe.store.store import ExpertStore
from emoe.worker.sources import LocalSource
from emoe.worker.transfer import HostTransfer, bytes_view


def copied(*seconds: float) -> list[Copied]:
    return [Copied(num_bytes=1 << 30, wall_seconds=one) for one in seconds]


def test_ratios_pair_the_turns_of_a_repeat() -> None:
    rows = rows_of({PINNED: copied(1.0, 2.0, 4.0), AT_HAND: copied(2.0, 2.0, 5.0)}, expert_bytes=4096, threads=3)
    assert [(row.way, row.threads, row.gib_per_second, row.pinned_ratio) for row in rows] == [
        (PINNED, 1, 0.5, 1.0),
        (AT_HAND, 3, 0.5, 0.8),
    ]


def test_the_loads_that_are_timed_fill_their_slots(tmp_path: Path) -> None:
    expert_bytes = write_experts(tmp_path, expert_bytes=8 << 10, num_experts=5)
    slots_SB = torch.zeros(3, expert_bytes, dtype=torch.uint8)
    with ExpertStore.open(tmp_path) as store, concurrent.futures.ThreadPoolExecutor(1) as pool:
        experts = list(from_grid(store.grid.all_experts()))
        load_experts(HostTransfer(LocalSource(store)), experts, slots_SB, pool)
        for slot, expert in ((0, experts[3]), (1, experts[4]), (2, experts[2])):
            expected = torch.empty(expert_bytes, dtype=torch.uint8)
            store.read_into(expert, bytes_view(expected))
            assert torch.equal(slots_SB[slot], expected)


@pytest.mark.parametrize("device", ["cuda:99", "cpu", "a gpu"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    result = CliRunner().invoke(app, ["bench", "transfer", "--device", device])
    assert result.exit_code == 1
    assert f"--device {device}" in result.stderr
