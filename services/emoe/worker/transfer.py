"""The device seam of loading: brings one expert's bytes from a source into its slot.

CPU: the source writes straight into the slot. CUDA: into pinned staging memory, then over a copy stream of its own;
the compute stream waits for the copy's event before the first step that may use the slot.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any, Protocol

import torch

from emoe.core.experts import ExpertId
from emoe.worker.sources import ExpertSource


class Transfer(Protocol):
    def fence(self) -> Any:
        """On the engine's thread, when a slot was freed: what `load` waits for before it writes there."""
        ...

    def load(self, expert: ExpertId, slot: torch.Tensor, fence: Any) -> Callable[[], None]:
        """Fills `slot` (uint8) on the calling thread; what it returns is called by the engine before first use."""
        ...


class HostTransfer:
    def __init__(self, source: ExpertSource) -> None:
        self._source = source

    def fence(self) -> None:
        """The engine computes on the calling thread: what it freed it has read."""

    def load(self, expert: ExpertId, slot: torch.Tensor, fence: None) -> Callable[[], None]:  # noqa: ARG002
        self._source.read_into(expert, bytes_view(slot))
        return _nothing


class CudaTransfer:
    """`num_buffers` pinned buffers bound how many copies are under way."""

    def __init__(
        self,
        source: ExpertSource,
        *,
        expert_bytes: int,
        num_buffers: int,
        device: torch.device,
        timeout_seconds: float = 60.0,
    ) -> None:
        self._source = source
        self._timeout_seconds = timeout_seconds
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._buffers: queue.SimpleQueue[torch.Tensor] = queue.SimpleQueue()
        for _ in range(num_buffers):
            self._buffers.put(torch.empty(expert_bytes, dtype=torch.uint8, pin_memory=True))

    def fence(self) -> torch.cuda.Event:
        """Kernels that read the slot's last expert may still be queued: the copy comes after them, and only them."""
        event: torch.cuda.Event = torch.cuda.current_stream(self._device).record_event()
        return event

    def load(self, expert: ExpertId, slot: torch.Tensor, fence: torch.cuda.Event) -> Callable[[], None]:
        buffer = self._buffers.get(timeout=self._timeout_seconds)
        try:
            self._source.read_into(expert, bytes_view(buffer))
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(fence)
                slot.copy_(buffer, non_blocking=True)
                copied = self._stream.record_event()
            copied.synchronize()
        finally:
            self._buffers.put(buffer)
        return lambda: torch.cuda.current_stream(slot.device).wait_event(copied)


def bytes_view(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous host tensor, to be written by a source."""
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _nothing() -> None:
    """A host write is visible as soon as the future that carries it is done."""
