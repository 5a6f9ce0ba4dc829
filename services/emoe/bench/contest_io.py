"""What the system tells of a contestant's reading and computing, and the page cache that it reads through."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

Say = Callable[[str], None]


def storage_bytes_read(pid: int) -> int | None:
    """What storage delivered to a process so far, mapped pages too; None where the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:
        return None
    counts = dict(line.split(": ", 1) for line in lines)
    return int(counts["read_bytes"]) if "read_bytes" in counts else None


def processor_seconds(pid: int) -> float | None:
    """Of all of a process's threads, the kernel's part too; None where the system does not tell."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    user, system = int(after_name[11]), int(after_name[12])
    return (user + system) / os.sysconf("SC_CLK_TCK")


def end_process(pid: int) -> None:
    """At once; it may have ended already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def drop_pages(places: Iterable[Path]) -> None:
    """Of these files and of those below these folders. What a process has mapped stays."""
    for place in places:
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file():
                _drop(path)


def _drop(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # pages not yet written cannot be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def free_memory_bytes() -> int:
    """What the machine could give now, page cache included."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
