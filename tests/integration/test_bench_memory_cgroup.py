"""A child process in a memory cgroup gets no more than its limit, counted from its start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from emoe.bench.failures import BenchmarkError
from emoe.bench.memory_cgroup import MemoryCgroup, memory_cgroup

LIMIT_BYTES = 64 * 1024 * 1024


@pytest.fixture
def cgroup() -> Iterator[MemoryCgroup]:
    try:
        context = memory_cgroup(LIMIT_BYTES)
        made = context.__enter__()
    except BenchmarkError as error:
        pytest.skip(str(error))
    yield made
    context.__exit__(None, None, None)


def take(cgroup: MemoryCgroup, num_bytes: int) -> int:
    command = [*cgroup.prefix, sys.executable, "-c", f"data = bytearray({num_bytes}); print(len(data))"]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode


def test_what_fits_is_given(cgroup: MemoryCgroup) -> None:
    assert take(cgroup, LIMIT_BYTES // 4) == 0
    assert cgroup.num_kills == 0


def test_what_does_not_fit_ends_the_process(cgroup: MemoryCgroup) -> None:
    assert take(cgroup, 2 * LIMIT_BYTES) != 0
    assert cgroup.num_kills == 1


def test_it_is_gone_with_the_block() -> None:
    try:
        with memory_cgroup(LIMIT_BYTES) as cgroup:
            assert take(cgroup, 1000) == 0
            assert cgroup.folder.is_dir()
    except BenchmarkError as error:
        pytest.skip(str(error))
    assert not cgroup.folder.exists()


def test_where_none_can_be_made_it_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(BenchmarkError, match="a memory cap needs a memory cgroup"),
        memory_cgroup(LIMIT_BYTES, mount=tmp_path / "absent"),
    ):
        pass


def test_what_a_killed_benchmark_left_is_removed_by_the_next(cgroup: MemoryCgroup) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(timeout=60)
    left = cgroup.folder.parent / f"emoe-bench-{ended.pid}-0"
    left.mkdir()
    with memory_cgroup(LIMIT_BYTES):
        assert not left.exists()
        assert cgroup.folder.is_dir(), "its maker is alive"
