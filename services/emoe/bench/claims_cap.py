"""A memory cap over a benchmark's child process: a memory cgroup on the CPU, a share of the device on a GPU.

A cap says how the child is started, what the child is told, and whether it was the cap that ended it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from emoe.bench.memory_cgroup import MemoryCgroup, memory_cgroup


class MemoryCap(Protocol):
    @property
    def prefix(self) -> tuple[str, ...]:
        """A command that becomes the one that follows it."""
        ...

    @property
    def child_options(self) -> Mapping[str, object]: ...

    @property
    def num_kills(self) -> int:
        """Processes that it ended."""
        ...


class NoCap:
    prefix: tuple[str, ...] = ()
    child_options: Mapping[str, object] = {}
    num_kills = 0


class CgroupCap:
    child_options: Mapping[str, object] = {}

    def __init__(self, cgroup: MemoryCgroup) -> None:
        self._cgroup = cgroup

    @property
    def prefix(self) -> tuple[str, ...]:
        return self._cgroup.prefix

    @property
    def num_kills(self) -> int:
        return self._cgroup.num_kills


class DeviceCap:
    """The child limits itself (`limit_device`) and answers that it ran out: it is never killed."""

    prefix: tuple[str, ...] = ()
    num_kills = 0

    def __init__(self, limit_bytes: int) -> None:
        self.child_options: Mapping[str, object] = {"device_limit_bytes": limit_bytes}


@contextlib.contextmanager
def open_cap(device: str, limit_bytes: int | None) -> Iterator[MemoryCap]:
    """BenchmarkError where the CPU's cannot be made."""
    if limit_bytes is None:
        yield NoCap()
    elif device.startswith("cuda"):
        yield DeviceCap(limit_bytes)
    else:
        with memory_cgroup(limit_bytes) as cgroup:
            yield CgroupCap(cgroup)


def limit_device(device: str, options: Mapping[str, Any]) -> None:
    """In the child: what `DeviceCap` told it. The device's context, a few hundred MB, is not in the limit."""
    limit_bytes = options.get("device_limit_bytes")
    if limit_bytes is None:
        return
    import torch

    total_bytes = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total_bytes), device)
