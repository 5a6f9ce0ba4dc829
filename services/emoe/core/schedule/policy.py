"""Which waiting request starts next, and on which worker (the `AdmissionPolicy` seam).

A policy keeps its own order of what waits, so that one decision costs a few steps of a heap however long the queue is.
It has no clock and does no I/O: the service's dispatcher and the simulator drive the same objects.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from emoe.core.schedule.cluster import Cluster
from emoe.core.schedule.request import QueuedRequest


class Admission(NamedTuple):
    """`reason` says in words, with figures, why this one, there and now."""

    request: QueuedRequest
    worker_id: str
    predicted_ttft_seconds: float
    """From its arrival, as foretold now."""
    coverage: float
    reason: str


OnDeferred = Callable[[QueuedRequest, float, str], None]
"""Which, at what time in seconds, and why."""


class AdmissionPolicy(Protocol):
    name: str
    on_deferred: OnDeferred | None
    """Told, while it picks, of each request that it puts behind others which can still be in time; None where nobody
    wants to know."""

    def add(self, request: QueuedRequest, now_seconds: float) -> None: ...

    def discard(self, request_id: str) -> None:
        """It left the queue by itself; unknown ids are no error."""
        ...

    def pick(self, cluster: Cluster, now_seconds: float) -> Admission | None:
        """Takes the next request to start out of the queue; None while none may start."""
        ...

    def __len__(self) -> int: ...
