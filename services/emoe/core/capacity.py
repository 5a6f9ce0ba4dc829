"""What one worker takes in memory, planned from a model's geometry before any of it is loaded.

Pure: the operator plans a pod's memory limit by it, `emoe plan` says it without a cluster, and the worker itself cuts
its slots by the same rule (`core.budget`). Knows neither Kubernetes nor files. What cannot be derived from the geometry
is a constant here, with where its figure comes from.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Literal

from emoe.core.budget import SlotBudget, slot_bytes, split_budget
from emoe.core.errors import BudgetError
from emoe.core.experts import ExpertGrid, ExpertId
from emoe.core.memory import ExpertMemory

MissPolicy = Literal["reroute", "load"]
Device = Literal["cpu", "gpu"]

MIB = 2**20
PROCESS_BYTES = 430 * MIB
"""Anonymous memory of a worker that has imported torch, transformers and gRPC and holds no model: measured, 412 MiB in
docs/benchmarks/cpu.md without gRPC, 430 with it."""
WORK_SPACE_BYTES = 200 * MIB
"""Buffers of a step, tokenizer, index and threads' stacks beside a small model: measured on the CPU, 145 to 170 MiB in
a pod under load."""
MAPPED_BYTES = 350 * MIB
"""Pages of the libraries' code that a step touches. They are charged to the pod that reads them first, and one that has
no room for them reads its code from disk again and again: measured in a pod."""
GROWTH_DIVISOR = 20
"""A twentieth of all that grows with the model is added for a step's activations and the allocator's rounding. Assumed:
the geometry does not say how wide the model is."""
GPU_HOST_BYTES = 1024 * MIB
"""Host memory of a CUDA context and its libraries. Assumed, and generous."""
GPU_STAGING_BUFFERS = 4
"""Pinned host buffers that experts pass through: the worker's `io_threads`."""
MAX_TENSOR_BYTES = 4096 * MIB
"""On a GPU base weights pass through the host one by one; no published model has a larger one. Assumed."""
READ_BYTES_PER_SECOND = 300_000_000
"""Assumed for the time to load: what one gRPC stream carries between two processes of one machine, and less than a
node's own disk gives."""
LIMIT_FIELD = "spec.workers.resources.limits.memory"
AUTO_WITHOUT_LIMIT = (
    f"spec.experts.memory: auto needs a memory limit to divide; set {LIMIT_FIELD}, or write a share (25%) or a "
    "quantity (8Gi)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelGeometry:
    """`kv_bytes_per_token` and `max_context` are 0 when the model's configuration does not say."""

    grid: ExpertGrid
    base_bytes: int
    """Of everything but routed experts."""
    kv_bytes_per_token: int = 0
    max_context: int = 0
    calibration_bytes: int = 0
    """Of the calibration beside the model; 0 where there is none, or it is not known."""

    @property
    def all_expert_bytes(self) -> int:
        return self.grid.num_experts_total * self.grid.expert_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerWishes:
    """What the resource says of a worker. `memory_limit_bytes`: of host memory, when the user sets one."""

    memory: ExpertMemory
    miss_policy: MissPolicy = "reroute"
    max_context: int = 2048
    max_concurrency: int = 8
    device: Device = "cpu"
    memory_limit_bytes: int | None = None
    pinned: tuple[ExpertId, ...] = ()

    @property
    def are_left_to_worker(self) -> bool:
        """Whether the slots are the worker's to count when it starts: how much memory a GPU has is not known before."""
        return self.memory.is_auto and self.device == "gpu"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerPlan:
    """`slots` has the staging slots in it. On a GPU slots, base weights and KV lie on the device (`device_bytes`), and
    `worker_memory_bytes` is the host's part. Slots that are left to the worker (memory auto on a GPU) are none here,
    and `device_bytes` is then the least that a device must have."""

    slots: int
    staging: int
    total_experts: int
    expert_bytes: int
    """Of all routed experts."""
    slot_bytes: int
    resident_bytes: int
    """Of all slots and the calibration: what the worker is given as its expert memory, in bytes."""
    min_bytes: int
    """The smallest expert memory that the miss policy allows."""
    base_bytes: int
    kv_bytes: int
    """0 when the model's configuration does not say."""
    overhead_bytes: int
    """Of the host: the process, its work space, and what grows with the model."""
    device_bytes: int
    worker_memory_bytes: int
    """Host memory of a worker in all, whole MiB: its memory limit unless the user sets one."""
    calibration_bytes: int = 0
    """Of the resident bytes, a calibration's: 0 where none is used."""
    is_left_to_worker: bool = False
    """Memory auto on a GPU: how many slots there are is not known before a worker says."""
    problems: tuple[str, ...] = ()
    """Why it cannot be, each with the figure that would do."""

    @property
    def fits(self) -> bool:
        return not self.problems

    def check(self) -> None:
        """BudgetError with every problem."""
        if self.problems:
            raise BudgetError("; ".join(self.problems))

    def load_seconds(self, *, bytes_per_second: float = READ_BYTES_PER_SECOND) -> float:
        """Until a worker has read its base weights and filled its slots."""
        return (self.base_bytes + self.resident_bytes) / bytes_per_second


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Host:
    """Host memory as a function of the slots' bytes: `fixed_bytes`, and a share of what grows with the model."""

    fixed_bytes: int
    grown_bytes: int
    holds_slots: bool

    def total_bytes(self, resident_bytes: int) -> int:
        grown = self.grown_bytes + (resident_bytes if self.holds_slots else 0)
        return self.fixed_bytes + grown + grown // GROWTH_DIVISOR

    def spare_bytes(self, limit_bytes: int) -> int:
        """For slots, so that `total_bytes` stays within the limit."""
        grown = (limit_bytes - self.fixed_bytes) * GROWTH_DIVISOR // (GROWTH_DIVISOR + 1)
        return max(0, grown - self.grown_bytes)


def plan_worker(geometry: ModelGeometry, wishes: WorkerWishes) -> WorkerPlan:
    """Always a plan: when it cannot be, its `problems` say why, and what would do."""
    grid, stride = geometry.grid, slot_bytes(geometry.grid)
    kv_bytes, host = _kv_bytes(geometry, wishes), _host_of(geometry, wishes)
    budget_bytes, unplannable = _budget_bytes(wishes, host, all_bytes=grid.num_experts_total * stride)
    split = split_budget(
        grid,
        budget_bytes=budget_bytes,
        reroute=wishes.miss_policy == "reroute",
        reserved_bytes=geometry.calibration_bytes,
    )
    min_slots = _min_slots(grid, wishes, split)
    min_bytes = _min_bytes(geometry, wishes, split, min_slots)
    resident_bytes = split.num_bytes + split.reserved_bytes
    total_bytes = host.total_bytes(resident_bytes)
    problems = _pin_problems(grid, wishes.pinned) + unplannable
    if not problems:
        needed_bytes = host.total_bytes(max(split.num_slots, min_slots) * stride + split.reserved_bytes)
        problems = _budget_problems(wishes, split, min_slots, min_bytes) + _limit_problems(wishes, needed_bytes)
    left = wishes.are_left_to_worker
    model_bytes = (min_bytes if left else resident_bytes) + geometry.base_bytes + kv_bytes
    on_device, held = (model_bytes, 0) if wishes.device == "gpu" else (0, model_bytes)
    return WorkerPlan(
        slots=split.num_slots,
        staging=split.num_staging,
        total_experts=grid.num_experts_total,
        expert_bytes=geometry.all_expert_bytes,
        slot_bytes=stride,
        resident_bytes=resident_bytes,
        min_bytes=min_bytes,
        base_bytes=geometry.base_bytes,
        kv_bytes=kv_bytes,
        overhead_bytes=total_bytes - held,
        device_bytes=on_device,
        worker_memory_bytes=-(-total_bytes // MIB) * MIB,
        calibration_bytes=split.reserved_bytes,
        is_left_to_worker=left,
        problems=problems,
    )


def _kv_bytes(geometry: ModelGeometry, wishes: WorkerWishes) -> int:
    """A row of the whole context for each sequence, as the worker lays its cache out."""
    context = min(wishes.max_context, geometry.max_context or wishes.max_context)
    return geometry.kv_bytes_per_token * context * wishes.max_concurrency


def _host_of(geometry: ModelGeometry, wishes: WorkerWishes) -> _Host:
    fixed = PROCESS_BYTES + WORK_SPACE_BYTES + MAPPED_BYTES
    if wishes.device == "gpu":
        staging = GPU_STAGING_BUFFERS * slot_bytes(geometry.grid)
        passing = min(geometry.base_bytes, MAX_TENSOR_BYTES)
        return _Host(fixed_bytes=fixed + GPU_HOST_BYTES + staging + passing, grown_bytes=0, holds_slots=False)
    return _Host(fixed_bytes=fixed, grown_bytes=geometry.base_bytes + _kv_bytes(geometry, wishes), holds_slots=True)


def _budget_bytes(wishes: WorkerWishes, host: _Host, *, all_bytes: int) -> tuple[int, tuple[str, ...]]:
    """What the expert memory comes to; with `auto`, what the limit spares, and why that cannot be known."""
    memory, limit = wishes.memory, wishes.memory_limit_bytes
    if wishes.are_left_to_worker:
        return 0, ()
    if why := why_auto_cannot_be(wishes):
        return 0, (why,)
    spare_bytes = None if limit is None else host.spare_bytes(limit)
    return memory.resolve(all_expert_bytes=all_bytes, spare_bytes=spare_bytes), ()


def why_auto_cannot_be(wishes: WorkerWishes) -> str | None:
    """Known before the model is."""
    by_limit = wishes.memory.is_auto and not wishes.are_left_to_worker
    return AUTO_WITHOUT_LIMIT if by_limit and wishes.memory_limit_bytes is None else None


def _min_slots(grid: ExpertGrid, wishes: WorkerWishes, split: SlotBudget) -> int:
    """Pinned experts take places that no layer's minimum may count twice, nor go without."""
    pinned = Counter(expert.layer for expert in set(wishes.pinned))
    if wishes.miss_policy == "reroute":
        more = sum(max(0, count - grid.rule.min_residents) for count in pinned.values())
    else:
        more = pinned.total()
    return min(split.min_slots + more, grid.num_experts_total)


def _min_bytes(geometry: ModelGeometry, wishes: WorkerWishes, split: SlotBudget, min_slots: int) -> int:
    """A worker does not know what is pinned: it leaves a calibration out for its own minimum alone."""
    is_beside = wishes.miss_policy == "reroute" and min_slots > split.min_slots
    reserved_bytes = geometry.calibration_bytes if is_beside else 0
    return min(min_slots * split.slot_bytes + reserved_bytes, geometry.grid.num_experts_total * split.slot_bytes)


def _pin_problems(grid: ExpertGrid, pinned: tuple[ExpertId, ...]) -> tuple[str, ...]:
    unknown = [expert for expert in pinned if not grid.contains(expert)]
    if not unknown:
        return ()
    named = ", ".join(f"{expert.index} of layer {expert.layer}" for expert in unknown[:4])
    return (
        f"pinned experts that the model does not have: {named}; layers with experts are {grid.moe_layers[0]} to "
        f"{grid.moe_layers[-1]}, and each has 0 to {grid.rule.num_experts - 1}",
    )


def _budget_problems(wishes: WorkerWishes, split: SlotBudget, min_slots: int, min_bytes: int) -> tuple[str, ...]:
    if split.num_slots >= min_slots or wishes.memory.is_auto:
        return ()  # auto: the limit is what is too small, and its figure what helps
    why = "every layer's top-k and staging" if wishes.miss_policy == "reroute" else "one layer's top-k"
    pinned = " beside what is pinned" if wishes.pinned else ""
    return (
        f"spec.experts.memory: it holds {split.num_slots} experts of {split.slot_bytes} bytes, and missPolicy "
        f"{wishes.miss_policy} needs at least {min_slots} ({why}{pinned}): raise it to "
        f"{as_quantity(min_bytes)} or more",
    )


def _limit_problems(wishes: WorkerWishes, needed_bytes: int) -> tuple[str, ...]:
    limit = wishes.memory_limit_bytes
    if limit is None or limit >= needed_bytes:
        return ()
    divides = wishes.memory.is_auto and not wishes.are_left_to_worker
    what = "leaves too little for experts" if divides else "is below the plan"
    raised = f"raise it to {as_quantity(needed_bytes)} or more"
    lower = "lower spec.experts.memory, spec.workers.maxContext or spec.workers.maxConcurrency"
    # On a GPU the limit is the host's, and nothing of the model's own size is in it.
    instead = "" if divides else ", or leave it out" if wishes.device == "gpu" else f", leave it out, or {lower}"
    return (f"{LIMIT_FIELD}: the workers' memory limit of {limit // MIB}Mi {what}: {raised}{instead}",)


def as_quantity(num_bytes: int) -> str:
    """A Kubernetes quantity of no less: whole KiB while that makes a difference, whole MiB above."""
    if num_bytes < 16 * MIB:
        return f"{-(-num_bytes // 1024)}Ki"
    return f"{-(-num_bytes // MIB)}Mi"
