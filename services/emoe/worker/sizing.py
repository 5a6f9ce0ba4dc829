"""How much memory experts get with `expert_memory` auto: what is left once the base model is in memory.

What the base model, the process and its neighbours take is measured; what the KV cache will take follows from its
shape; what steps take beside them is kept free. Asked after the base model is loaded and before slots are made.
"""

from __future__ import annotations

import dataclasses
import logging

import pynvml
import torch

from emoe.core.budget import slot_bytes
from emoe.core.capacity import GROWTH_DIVISOR, MAPPED_BYTES, WORK_SPACE_BYTES
from emoe.core.errors import BudgetError
from emoe.runtime.memory_room import MemoryRoom, read_memory_room
from emoe.store.footprint import kv_bytes_per_token
from emoe.store.store import ExpertStore
from emoe.store.tensors import DTYPE_BITS
from emoe.worker.quantised.stack import SCRATCH_BYTES

log = logging.getLogger(__name__)

GPU_KEPT_BYTES = 1024 * 2**20
"""Kept free on a device for the products' work spaces, recorded steps and the allocator's rounding. Assumed: not
measured yet."""
HOST_KEPT_BYTES = WORK_SPACE_BYTES + MAPPED_BYTES


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertSizing:
    """All in bytes. `kept_bytes` stay free for steps."""

    room: MemoryRoom
    kv_bytes: int
    kept_bytes: int
    all_bytes: int
    """Of slots for every expert."""

    @property
    def expert_bytes(self) -> int:
        """A twentieth of what is added is kept as well, for activations and rounding (`core.capacity`)."""
        spare = self.room.free_bytes - self.kv_bytes - self.kept_bytes
        return min(self.all_bytes, max(0, spare * GROWTH_DIVISOR // (GROWTH_DIVISOR + 1)))

    def __str__(self) -> str:
        room, mib = self.room, 2**20
        return (
            f"{self.expert_bytes // mib} MiB for experts: of {room.source}, {room.limit_bytes // mib} MiB, "
            f"{room.used_bytes // mib} MiB are taken with the base model loaded, the KV cache takes "
            f"{self.kv_bytes // mib} MiB and {self.kept_bytes // mib} MiB and a twentieth are kept for steps; all "
            f"experts would take {self.all_bytes // mib} MiB"
        )


def size_experts(store: ExpertStore, *, device: torch.device, max_context: int, max_concurrency: int) -> ExpertSizing:
    """To be asked once the base model is on the device. BudgetError when the KV cache's size cannot be told."""
    per_token = kv_bytes_per_token(store.config, bits=DTYPE_BITS[store.dtype])
    if per_token is None:
        raise BudgetError(
            "expert_memory auto cannot tell what the KV cache takes: the model's config.json does not say; write a "
            "share (25%) or a size (2GiB)"
        )
    on_gpu = device.type == "cuda"
    return ExpertSizing(
        room=read_device_room(device) if on_gpu else read_memory_room(),
        kv_bytes=per_token * max_context * max_concurrency,
        kept_bytes=kept_on_gpu(store) if on_gpu else HOST_KEPT_BYTES,
        all_bytes=store.grid.num_experts_total * slot_bytes(store.grid),
    )


def kept_on_gpu(store: ExpertStore) -> int:
    """With what grouped products decode quantised experts into."""
    return GPU_KEPT_BYTES + (0 if store.quantisation is None else SCRATCH_BYTES)


def read_device_room(device: torch.device) -> MemoryRoom:
    """What NVML says of the device, whoever uses it. BudgetError where it says nothing."""
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
    return MemoryRoom(limit_bytes=memory.total, used_bytes=memory.used, source=f"{device}'s memory")
