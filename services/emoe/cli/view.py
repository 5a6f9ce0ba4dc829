"""What the command shows of a running system, as plain values. Pure: counters in, rates out; no grpc, no rendering."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counters:
    """A worker's totals since it started."""

    num_expert_hits: int = 0
    num_expert_choices: int = 0
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    num_experts_loaded: int = 0
    num_bytes_loaded: int = 0
    stall_seconds: float = 0.0

    def since(self, earlier: Counters) -> Counters:
        """What was added after `earlier`; after a restart of the worker, all of it."""
        if self.num_prompt_tokens < earlier.num_prompt_tokens or self.num_expert_choices < earlier.num_expert_choices:
            return self
        differences = {
            field.name: max(0, getattr(self, field.name) - getattr(earlier, field.name))
            for field in dataclasses.fields(self)
        }
        return Counters(**differences)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerView:
    worker_id: str
    address: str
    ready: bool
    miss_policy: str
    num_resident: int
    num_slots: int
    slot_bytes: int
    num_running: int
    num_waiting: int
    counters: Counters


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueueView:
    """The scheduler's own figures."""

    num_waiting: int
    num_running: int
    num_workers: int
    max_queued_requests: int
    max_queued_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerRates:
    """Of one interval. `hit_rate` is the interval's, or the total if nothing ran in it; None before the first token."""

    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    hit_rate: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SystemView:
    """One look at the whole system. What could not be asked is None or empty: a part may be restarting."""

    num_experts: int | None
    queue: QueueView | None
    workers: tuple[WorkerView, ...]
    rates: dict[str, WorkerRates]


def build_rates(counters: Counters, earlier: Counters | None, *, elapsed_seconds: float) -> WorkerRates:
    if earlier is None or elapsed_seconds <= 0:
        return WorkerRates(prefill_tokens_per_second=0.0, decode_tokens_per_second=0.0, hit_rate=hit_rate_of(counters))
    added = counters.since(earlier)
    return WorkerRates(
        prefill_tokens_per_second=added.num_prompt_tokens / elapsed_seconds,
        decode_tokens_per_second=added.num_completion_tokens / elapsed_seconds,
        hit_rate=hit_rate_of(added) if added.num_expert_choices else hit_rate_of(counters),
    )


def hit_rate_of(counters: Counters) -> float | None:
    return hit_rate(counters.num_expert_hits, counters.num_expert_choices)


def hit_rate(num_hits: int, num_choices: int) -> float | None:
    """Share of the router's choices that were resident; None if it made none."""
    return num_hits / num_choices if num_choices else None
