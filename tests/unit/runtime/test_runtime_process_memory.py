"""A process's memory as the kernel tells it, and a peak that can be forgotten."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emoe.runtime.process_memory import ProcessMemory, forget_peak, read_process_memory

MIB = 2**20


def test_what_is_read_is_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "proc/self"
    folder.mkdir(parents=True)
    (folder / "status").write_text("Name:\tx\nVmHWM:\t    900 kB\nRssAnon:\t 500 kB\nRssFile:\t 300 kB\nThreads:\t3\n")
    assert read_process_memory(tmp_path) == ProcessMemory(
        anonymous_bytes=500 * 1024, file_bytes=300 * 1024, peak_bytes=900 * 1024
    )


def test_a_peak_outlives_what_made_it_until_it_is_forgotten() -> None:
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the kernel does not let a process forget its peak here")
    forget_peak()
    before = read_process_memory().peak_bytes
    block = bytearray(64 * MIB)
    block[::4096] = b"x" * len(block[::4096])
    del block
    assert read_process_memory().peak_bytes >= before + 60 * MIB
    forget_peak()
    assert read_process_memory().peak_bytes < before + 30 * MIB


def test_a_kernel_that_forgets_nothing_is_no_error(tmp_path: Path) -> None:
    forget_peak(tmp_path)
