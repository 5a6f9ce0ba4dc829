"""What a spec asks of one worker's memory, in the words of `core.capacity`: one place for operator and command."""

from __future__ import annotations

from emoe.api.pods import Resources
from emoe.api.services import Workers
from emoe.api.spec import Experts
from emoe.core.capacity import WorkerWishes
from emoe.core.experts import ExpertId


def worker_wishes(experts: Experts, workers: Workers, resources: Resources | None = None) -> WorkerWishes:
    """`resources`: those of the main container where a pod template says more than the workers' own field."""
    asked = workers.resources if resources is None else resources
    return WorkerWishes(
        memory=experts.memory.parsed,
        miss_policy=experts.miss_policy,
        max_context=workers.max_context,
        max_concurrency=workers.max_concurrency,
        device="gpu" if asked.asks_for_gpu else "cpu",
        memory_limit_bytes=asked.memory_limit_bytes,
        pinned=tuple(ExpertId(entry.layer, index) for entry in experts.pinned for index in entry.experts),
    )
