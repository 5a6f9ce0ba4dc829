"""How much memory experts get with `expert_memory` auto: what is left once the base model is in memory.

What the base model, the process and its neighbours take is measured, and so is what the largest step takes (`trial`);
what keys and values will take follows from their shape. Asked after the base model is loaded and before slots are made.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from typing import Any

import torch

from emoe.core.budget import slot_bytes, split_budget
from emoe.core.errors import BudgetError
from emoe.runtime.memory_room import MemoryRoom
from emoe.store.footprint import kv_bytes_per_token, measure
from emoe.store.store import ExpertStore
from emoe.store.tensors import DTYPE_BITS
from emoe.worker.build import EngineOptions
from emoe.worker.gauges import read_room
from emoe.worker.sources import ExpertSource
from emoe.worker.trial import StepPeak, measure_steps

log = logging.getLogger(__name__)

MIB = 2**20
HOST_MARGIN_BYTES = 320 * MIB
"""Kept free for what one step does not show: products that oneDNN compiles for further numbers of rows (half a mebibyte
each, 256 of them: `device`), gaps that tensors of other sizes leave in the heap, neighbours. 265 MiB of it were used by
576 answers of odd lengths (docs/choosing-a-budget.md)."""
DEVICE_MARGIN_BYTES = 512 * MIB
"""The same on a device, for the allocator's gaps between steps of other sizes and for neighbours. Assumed."""
WHAT_TO_DO = "lower max_context or max_concurrency, or step_tokens"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
    """What is known before anything is loaded, in bytes."""

    base_bytes: int
    kv_bytes: int
    kv_bytes_per_token: int
    margin_bytes: int
    least_bytes: int
    """Of slots that the miss policy cannot do without."""
    all_bytes: int
    """Of slots for every expert."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertSizing:
    """`room`: with the base model loaded. `step`: the most that a step takes beside slots and KV."""

    room: MemoryRoom
    needs: Needs
    step: StepPeak

    @property
    def spare_bytes(self) -> int:
        """Below 0 where something is missing already."""
        return self.room.free_bytes - self.needs.kv_bytes - self.step.num_bytes - self.needs.margin_bytes

    @property
    def expert_bytes(self) -> int:
        return min(self.needs.all_bytes, max(0, self.spare_bytes))

    def check(self) -> None:
        """BudgetError where less is left than the miss policy needs, with what is missing."""
        missing = self.needs.least_bytes - self.spare_bytes
        if missing > 0:
            raise BudgetError(
                f"expert_memory auto: too little is left for experts, {_mib(self.expert_bytes)}, and the least is "
                f"{_mib(self.needs.least_bytes)} ({self._account()}): give the worker {_mib(missing)} more memory, or "
                f"{WHAT_TO_DO}"
            )

    def __str__(self) -> str:
        return (
            f"{_mib(self.expert_bytes)} for experts, of {_mib(self.needs.all_bytes)} for all of them: "
            f"{self._account()}; measured in {self.step.seconds:.1f} s"
        )

    def _account(self) -> str:
        room, step, needs = self.room, self.step, self.needs
        parts = [(step.code_bytes, "the libraries' code"), (step.recording_bytes, "recorded steps")]
        named = " and ".join(f"{_mib(size)} {name}" for size, name in parts if size)
        took = "would take, as smaller ones foretell," if step.is_foretold else "takes"
        return (
            f"of {room.source}, {_mib(room.limit_bytes)}, {_mib(room.used_bytes)} are taken with the base model, "
            f"keys and values take {_mib(needs.kv_bytes)}, a step of {step.num_tokens} tokens {took} "
            f"{_mib(step.num_bytes)} beside{f' ({named} among it)' if named else ''}, and {_mib(needs.margin_bytes)} "
            "are a margin"
        )


def needs_of(store: ExpertStore, options: EngineOptions) -> Needs:
    """BudgetError when the KV cache's size cannot be told."""
    per_token = kv_bytes_per_token(store.config, bits=DTYPE_BITS[store.dtype])
    if per_token is None:
        raise BudgetError(
            "expert_memory auto cannot tell what the KV cache takes: the model's config.json does not say; write a "
            "share (25%) or a size (2GiB)"
        )
    stride = slot_bytes(store.grid)
    least = split_budget(store.grid, budget_bytes=0, reroute=options.miss_policy == "reroute").min_slots
    return Needs(
        base_bytes=measure(store).base_bytes,
        kv_bytes=per_token * options.max_context * options.max_concurrency,
        kv_bytes_per_token=per_token,
        margin_bytes=DEVICE_MARGIN_BYTES if options.device.startswith("cuda") else HOST_MARGIN_BYTES,
        least_bytes=least * stride,
        all_bytes=store.grid.num_experts_total * stride,
    )


def check_before_loading(needs: Needs, options: EngineOptions) -> None:
    """BudgetError for memory that has no room for what must be, whatever a step takes: to say so is better than to be
    killed half-way."""
    room = read_room(torch.device(options.device))
    needed = needs.base_bytes + needs.kv_bytes + needs.least_bytes + needs.margin_bytes
    if room.free_bytes < needed:
        raise BudgetError(
            f"expert_memory auto: of {room.source}, {_mib(room.limit_bytes)}, {_mib(room.free_bytes)} are free, and "
            f"before any step the base model ({_mib(needs.base_bytes)}), keys and values ({_mib(needs.kv_bytes)}), the "
            f"fewest experts ({_mib(needs.least_bytes)}) and a margin ({_mib(needs.margin_bytes)}) take "
            f"{_mib(needed)}: give the worker {_mib(needed - room.free_bytes)} more memory at least, or {WHAT_TO_DO}"
        )


def size_experts(
    store: ExpertStore,
    source: ExpertSource,
    options: EngineOptions,
    model: Any,
    *,
    needs: Needs,
    timeout_seconds: float,
    cut_short: threading.Event,
) -> ExpertSizing:
    """To be asked once the base model is on the device. Errors as of `measure_steps`."""
    room = read_room(torch.device(options.device))
    reserved_bytes = options.calibration.num_bytes if options.calibration else 0
    least = dataclasses.replace(options, expert_memory=str(needs.least_bytes + reserved_bytes))
    log.info("expert_memory auto: measuring what the largest step takes")
    step = measure_steps(
        store,
        source,
        least,
        model,
        kv_bytes_per_token=needs.kv_bytes_per_token,
        allowed_bytes=room.free_bytes - needs.kv_bytes - needs.margin_bytes - needs.least_bytes,
        timeout_seconds=timeout_seconds,
        cut_short=cut_short,
    )
    return ExpertSizing(room=room, needs=needs, step=step)


def _mib(num_bytes: int) -> str:
    """Small models are measured in KiB."""
    return f"{num_bytes // MIB} MiB" if num_bytes >= MIB else f"{num_bytes // 1024} KiB"
