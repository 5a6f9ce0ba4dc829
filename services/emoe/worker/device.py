"""What this process may use: the device asked for, and as many threads as its cgroup gives it."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

MAX_KERNELS = 256


def pick_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is a device. ValueError if the one asked for is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} is not here: torch sees no CUDA device; use cpu or auto")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is not known; use cpu, cuda, cuda:N or auto") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not supported; use cpu, cuda, cuda:N or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} is not here: torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def bound_kernel_cache() -> None:
    """Before the first product. oneDNN keeps a compiled kernel, half a megabyte, for every shape of a 16-bit product it
    met, 1024 of them unless told otherwise: memory that no budget would show. What the user set stands."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(MAX_KERNELS))


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The affinity mask, cut by the CPU quota of cgroup v2 or v1; at least one."""
    allowed = len(os.sched_getaffinity(0))
    quota = _quota_v2(cgroup / "cpu.max") or _quota_v1(cgroup / "cpu")
    return max(1, min(allowed, math.ceil(quota))) if quota else allowed


def _quota_v2(path: Path) -> float | None:
    try:
        quota, period = path.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return None if quota <= 0 else quota / period
