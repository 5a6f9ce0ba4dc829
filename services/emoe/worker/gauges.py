"""Two gauges of what a trial takes: of this process's own memory, and of a device's.

The host's memory is taken when it is written, so slots and keys count as far as they were; a device's when it is
allocated. Knows nothing of models.
"""

from __future__ import annotations

from typing import Protocol

import pynvml
import torch

from emoe.core.errors import BudgetError
from emoe.runtime.memory_room import MemoryRoom, read_memory_room
from emoe.runtime.process_memory import forget_peak, read_process_memory


class Gauge(Protocol):
    code_bytes: int
    """Of the most bytes, pages of libraries' code."""

    def begin(self) -> None:
        """What is taken is counted from here on."""
        ...

    def most_bytes(self) -> int:
        """The most that was taken at once since the beginning."""
        ...

    def settled_bytes(self) -> int:
        """What is taken now, without what an allocator keeps for later."""
        ...

    def held_bytes(self, *, slots: int, resident: int, kv: int, written_kv: int) -> int:
        """As much of slots (of those with residents) and of keys and values as `most_bytes` has in it."""
        ...


class HostGauge:
    def __init__(self) -> None:
        self.code_bytes = 0
        self._anonymous_bytes = 0

    def __str__(self) -> str:
        return "the host's memory"

    def begin(self) -> None:
        forget_peak()
        self._anonymous_bytes = read_process_memory().anonymous_bytes

    def most_bytes(self) -> int:
        """With all pages of code, also those touched before: no limit's room counts them as taken, and a worker that
        has no room for them reads its code from disk again and again."""
        now = read_process_memory()
        self.code_bytes = now.file_bytes
        return now.peak_bytes - self._anonymous_bytes

    def settled_bytes(self) -> int:
        return read_process_memory().anonymous_bytes - self._anonymous_bytes

    def held_bytes(self, *, slots: int, resident: int, kv: int, written_kv: int) -> int:
        return min(slots, resident) + min(kv, written_kv)


class DeviceGauge:
    """What is in use is the most that was, until `settled_bytes` or recording a CUDA graph empties the caches."""

    def __init__(self, device: torch.device) -> None:
        self.code_bytes = 0
        self._device = device
        self._used_bytes = 0

    def __str__(self) -> str:
        return f"{self._device}'s memory"

    def begin(self) -> None:
        torch.cuda.empty_cache()
        self._used_bytes = read_device_room(self._device).used_bytes

    def most_bytes(self) -> int:
        torch.cuda.synchronize(self._device)
        return read_device_room(self._device).used_bytes - self._used_bytes

    def settled_bytes(self) -> int:
        torch.cuda.empty_cache()
        return self.most_bytes()

    def held_bytes(self, *, slots: int, resident: int, kv: int, written_kv: int) -> int:  # noqa: ARG002 - as the host's
        return slots + kv


def gauge_of(device: torch.device) -> Gauge:
    return DeviceGauge(device) if device.type == "cuda" else HostGauge()


def read_room(device: torch.device) -> MemoryRoom:
    return read_device_room(device) if device.type == "cuda" else read_memory_room()


def read_device_room(device: torch.device) -> MemoryRoom:
    """The tighter of what NVML says of the whole device, whoever uses it, and what CUDA says of the part of it that
    this process was given. BudgetError where NVML says nothing."""
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    try:
        pynvml.nvmlInit()
        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(uuid))
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise BudgetError(
            f"expert_memory auto needs NVML to say how much of {device} is free ({error}): write a share (25%) or a "
            "size (2GiB)"
        ) from error
    free, total = torch.cuda.mem_get_info(device)
    whole = MemoryRoom(limit_bytes=memory.total, used_bytes=memory.used, source=f"{device}'s memory")
    given = MemoryRoom(limit_bytes=total, used_bytes=total - free, source=f"what CUDA gives of {device}'s memory")
    return given if given.limit_bytes < whole.limit_bytes // 10 * 9 else whole
