"""How much memory this process holds, and the most that it held since it was last asked to forget.

The kernel's own figures, so that no peak between two looks is lost. Knows nothing of limits (`memory_room`), nor of
devices.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

FORGET_PEAK = "5"
"""What /proc/PID/clear_refs takes for it: proc(5)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessMemory:
    anonymous_bytes: int
    file_bytes: int
    """Pages of files, most of them libraries' code, that this process has touched: the kernel may drop them, and then
    they are read again."""
    peak_bytes: int
    """The most of both."""


def read_process_memory(root: Path = Path("/")) -> ProcessMemory:
    """OSError where /proc is not to be read, KeyError where it does not say."""
    lines = (root / "proc/self/status").read_text().splitlines()
    kib = {name: int(value.split()[0]) for name, value in (line.split(":", 1) for line in lines) if "kB" in value}
    return ProcessMemory(
        anonymous_bytes=kib["RssAnon"] * 1024, file_bytes=kib["RssFile"] * 1024, peak_bytes=kib["VmHWM"] * 1024
    )


def forget_peak(root: Path = Path("/")) -> None:
    """The next peak counts from now on. Where the kernel does not allow it the old one stands, which is no less."""
    with contextlib.suppress(OSError):
        (root / "proc/self/clear_refs").write_text(FORGET_PEAK)
