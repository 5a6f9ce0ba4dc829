"""The state folder of a running `emoe up`: one at a time, and a file by which other commands find it.

The lock is the kernel's, so a killed process leaves none behind. The file outlives a killed process; its pid and start
time tell whether what it names still runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from emoe.cli.failures import CommandError

UP_FILE = "up.json"
LOCK_FILE = "up.lock"


class StateDirBusyError(CommandError):
    """Another `emoe up` holds this state folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunningSystem:
    """What `emoe up` says of itself. `start_ticks` is when `pid` started, so that a reused pid is told apart."""

    pid: int
    start_ticks: int | None
    model: str
    scheduler: str
    loader: str


@contextlib.contextmanager
def locked_state_dir(state_dir: Path) -> Iterator[None]:
    """Holds the folder until the block ends. StateDirBusyError if another process does."""
    state_dir.mkdir(parents=True, exist_ok=True)
    with (state_dir / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateDirBusyError(
                f"another emoe up uses {state_dir}; stop it, or give this one a --state-dir of its own"
            ) from None
        yield


def write_up_file(state_dir: Path, *, model: str, scheduler: str, loader: str) -> None:
    """Names this process; atomic, so that a reader never sees half of it."""
    system = RunningSystem(
        pid=os.getpid(), start_ticks=start_ticks(os.getpid()), model=model, scheduler=scheduler, loader=loader
    )
    partial = state_dir / f"{UP_FILE}.partial"
    partial.write_text(json.dumps(dataclasses.asdict(system)) + "\n", encoding="utf-8")
    partial.replace(state_dir / UP_FILE)


def remove_up_file(state_dir: Path) -> None:
    (state_dir / UP_FILE).unlink(missing_ok=True)


def find_running_system(state_dir: Path) -> RunningSystem | None:
    """The system that `emoe up` runs with this folder; None if there is none, or only a file that a dead one left."""
    try:
        system = RunningSystem(**json.loads((state_dir / UP_FILE).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return system if _is_alive(system) else None


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None without /proc, or if there is no such process now."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field is the command in brackets and may hold blanks: count from its end. Start time is field 22.
    state, *fields = stat[stat.rindex(")") + 2 :].split()
    return None if state == "Z" else int(fields[18])


def _is_alive(system: RunningSystem) -> bool:
    try:
        os.kill(system.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return system.start_ticks is not None and system.start_ticks == start_ticks(system.pid)
