"""A memory cgroup for a child process: what it takes is bounded, and so is the page cache of what it reads.

Version 1 and 2 of the kernel's interface, at the top of the hierarchy that this machine or container shows; both need
its owner's rights. Pages that another process read before belong to that one: drop them first (`contest_io`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

from emoe.bench.failures import BenchmarkError

MOUNT = Path("/sys/fs/cgroup")
PREFIX = "emoe-bench-"
"""Of a cgroup's name; the maker's process id and a number follow."""
REMOVE_SECONDS = 5.0
"""A cgroup is busy until the kernel has buried its last process."""

_numbers = itertools.count()


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryCgroup:
    folder: Path
    limit_bytes: int

    @property
    def prefix(self) -> tuple[str, ...]:
        """A command that moves itself in and becomes the one that follows, counted from its start."""
        return ("sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self.folder))

    @property
    def num_kills(self) -> int:
        """Processes that were killed because they needed more."""
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(FileNotFoundError):
                lines = (self.folder / name).read_text().splitlines()
                return int(dict(line.split() for line in lines).get("oom_kill", 0))
        return 0


@contextlib.contextmanager
def memory_cgroup(limit_bytes: int, *, mount: Path = MOUNT) -> Iterator[MemoryCgroup]:
    """Removed with the block, when its processes have ended. BenchmarkError where none may be made."""
    version_1 = mount / "memory"
    parent = version_1 if version_1.is_dir() else mount
    _remove_orphans(parent)
    folder = parent / f"{PREFIX}{os.getpid()}-{next(_numbers)}"
    try:
        folder.mkdir()
    except OSError as error:
        raise BenchmarkError(_refusal(error)) from error
    try:
        _limit(folder, limit_bytes, version_1=parent == version_1)
        yield MemoryCgroup(folder=folder, limit_bytes=limit_bytes)
    finally:
        _remove(folder)


def _remove_orphans(parent: Path) -> None:
    """Of makers that were killed and could not; one that still has processes stays, and so does another's."""
    for folder in parent.glob(f"{PREFIX}*"):
        maker = folder.name.removeprefix(PREFIX).split("-")[0]
        if maker.isdigit() and not Path("/proc", maker).exists():
            with contextlib.suppress(OSError):
                folder.rmdir()


def _limit(folder: Path, limit_bytes: int, *, version_1: bool) -> None:
    names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") if version_1 else ("memory.max",)
    try:
        for name in names:
            (folder / name).write_text(str(limit_bytes))
        if not version_1:
            (folder / "memory.swap.max").write_text("0")
    except OSError as error:
        # Without accounting of swap, as many kernels are built, those files are absent: then there is no such limit.
        if not (isinstance(error, FileNotFoundError) and "sw" in Path(str(error.filename)).name):
            raise BenchmarkError(_refusal(error)) from error


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + REMOVE_SECONDS
    while True:
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _refusal(error: OSError) -> str:
    return (
        f"a memory cap needs a memory cgroup, and none can be made here: {error}; run it as the owner of {MOUNT} "
        "(root on the machine), or without a cap"
    )
