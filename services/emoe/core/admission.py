"""Which waiting request runs next, and on which worker (the `AdmissionPolicy` seam).

Pure: a queue and the workers in, one pick or none out. The scheduler asks again after every arrival, completion and
heartbeat. eMoE's own rule (section 4.4) comes with measured costs; these two need none.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol


@dataclasses.dataclass(frozen=True, kw_only=True)
class Waiting:
    """A queued request. `num_tokens` is prompt and longest answer together: what it may take of a worker's KV."""

    request_id: str
    task: str
    num_tokens: int
    arrived_seconds: float
    ttft_seconds: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerCapacity:
    """What a worker reported, less what was sent to it since. `coverage` is its residents' share of a task's demand."""

    worker_id: str
    free_sequences: int
    max_tokens_per_sequence: int
    coverage: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Admission:
    request_id: str
    worker_id: str


class AdmissionPolicy(Protocol):
    def pick(self, waiting: Sequence[Waiting], workers: Sequence[WorkerCapacity]) -> Admission | None:
        """The next request to start and its worker; None while nothing fits."""
        ...


class FifoAdmission:
    """First come, first served."""

    def pick(self, waiting: Sequence[Waiting], workers: Sequence[WorkerCapacity]) -> Admission | None:
        return _first_that_fits(sorted(waiting, key=lambda request: request.arrived_seconds), workers)


class EarliestDeadlineAdmission:
    """The request whose first token is due soonest; those without a target come last, in order of arrival."""

    def pick(self, waiting: Sequence[Waiting], workers: Sequence[WorkerCapacity]) -> Admission | None:
        return _first_that_fits(sorted(waiting, key=_first_token_due), workers)


ADMISSION_POLICIES: dict[str, AdmissionPolicy] = {"fifo": FifoAdmission(), "edf": EarliestDeadlineAdmission()}


def _first_token_due(request: Waiting) -> tuple[float, float]:
    target = math.inf if request.ttft_seconds is None else request.ttft_seconds
    return request.arrived_seconds + target, request.arrived_seconds


def _first_that_fits(ordered: Sequence[Waiting], workers: Sequence[WorkerCapacity]) -> Admission | None:
    for request in ordered:
        fitting = [
            worker
            for worker in workers
            if worker.free_sequences > 0 and request.num_tokens <= worker.max_tokens_per_sequence
        ]
        if fitting:
            best = max(fitting, key=lambda worker: (worker.coverage.get(request.task, 0.0), worker.free_sequences))
            return Admission(request_id=request.request_id, worker_id=best.worker_id)
    return None
