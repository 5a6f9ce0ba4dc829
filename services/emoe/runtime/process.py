"""What a service does as an operating-system process: tell its parent where it listens, and die with it."""

from __future__ import annotations

import ctypes
import json
import os
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def announce(path: Path, *, service: str, address: str, health_address: str) -> None:
    """Write this process's addresses as JSON; a reader sees the whole file or none."""
    document = {"service": service, "pid": os.getpid(), "address": address, "health_address": health_address}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(document) + "\n", encoding="utf-8")
    partial.replace(path)


def die_with_parent(parent_pid: int | None) -> None:
    """Linux: SIGKILL for this process once the thread that started it ends. Exits now if `parent_pid` is gone."""
    before = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed; start without exit_with_parent")
    if os.getppid() != (before if parent_pid is None else parent_pid):
        raise SystemExit("the parent process is gone; not starting")
