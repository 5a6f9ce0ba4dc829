"""A memory cgroup for a test, of version 2 or 1, below the one that the tests run in or the nearest that allows it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup")


class MemoryCgroup:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._is_v2 = (folder / "memory.max").exists()

    @property
    def entering(self) -> tuple[str, ...]:
        """A command that enters the group and becomes the command that follows it."""
        return ("sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.folder / "cgroup.procs"))

    def limit(self, num_bytes: int) -> int:
        """No swap either. Returns the limit in whole pages, as the kernel took it."""
        names = ("memory.max", "memory.swap.max") if self._is_v2 else ("memory.limit_in_bytes", "memory.swappiness")
        (self.folder / names[0]).write_text(str(num_bytes))
        with contextlib.suppress(FileNotFoundError):  # a kernel without swap accounting
            (self.folder / names[1]).write_text("0")
        return int((self.folder / names[0]).read_text())

    @property
    def peak_bytes(self) -> int | None:
        """None before Linux 5.19 with version 2."""
        path = self.folder / ("memory.peak" if self._is_v2 else "memory.max_usage_in_bytes")
        return int(path.read_text()) if path.exists() else None


@contextlib.contextmanager
def memory_cgroup() -> Iterator[MemoryCgroup]:
    """Skips the test, saying why, where none can be made."""
    reasons = []
    for parent in _parents():
        folder = parent / f"emoe-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError as error:
            reasons.append(f"{parent}: {error.strerror}")
            continue
        try:
            if (folder / "memory.max").exists() or (folder / "memory.limit_in_bytes").exists():
                yield MemoryCgroup(folder)
                return
            reasons.append(f"{parent}: its children have no memory controller")
        finally:
            folder.rmdir()
    pytest.skip(f"no memory cgroup can be made: {'; '.join(reasons) or 'none is mounted at /sys/fs/cgroup'}")


def _parents() -> Iterator[Path]:
    """Our own cgroup first, then those above it: version 2 gives a group with processes no children with limits."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            mount = ROOT / "memory"
        elif not controllers and (ROOT / "cgroup.controllers").exists():
            mount = ROOT
        else:
            continue
        own = mount / path.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(mount) and folder.is_dir())
