from __future__ import annotations

import os
from pathlib import Path

import pytest

from emoe.runtime.cpus import usable_cpus
from emoe.worker.device import pick_device

ALLOWED = len(os.sched_getaffinity(0))


def test_a_quota_of_cgroup_v2_bounds_the_threads(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert usable_cpus(tmp_path) == 1


def test_a_quota_of_cgroup_v1_bounds_the_threads(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cpus(tmp_path) == 1


@pytest.mark.parametrize("text", ["max 100000\n", ""], ids=["no quota", "unreadable"])
def test_without_a_quota_the_affinity_mask_decides(tmp_path: Path, text: str) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cpus(tmp_path) == ALLOWED


def test_a_device_that_is_not_here_is_named() -> None:
    with pytest.raises(ValueError, match="cuda:7"):
        pick_device("cuda:7")


@pytest.mark.parametrize("name", ["mps", "meta", "gpu0", "cuda:x"], ids=str)
def test_a_device_that_emoe_cannot_use_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        pick_device(name)
