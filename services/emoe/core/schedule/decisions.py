"""What the scheduler decided and why, the latest of it: a ring in memory, as large after a day as after an hour.

Times are on the caller's clock; what a reader sees of them is the edge's to say.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import itertools
from collections.abc import Iterator
from typing import NamedTuple


class DecisionKind(enum.Enum):
    ADMITTED = "admitted"
    """Sent to a worker."""
    REFUSED = "refused"
    """Turned away with a retry delay."""
    DEFERRED = "deferred"
    """Put behind requests that can still be in time."""
    REQUEUED = "requeued"
    """Its worker died or was full; it waits again."""
    DONE = "done"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    FAILED = "failed"


ENDS = frozenset({DecisionKind.DONE, DecisionKind.CANCELLED, DecisionKind.EXPIRED, DecisionKind.FAILED})
"""With REFUSED, how a request leaves: each in exactly one of them."""


class Decision(NamedTuple):
    """A tuple, since one is made for every request that comes and goes."""

    at_seconds: float
    kind: DecisionKind
    request_id: str
    task: str
    tenant: str
    reason: str
    """In words, with the figures that decided."""
    age_seconds: float
    """Since its arrival."""
    num_waiting: int
    num_workers: int
    worker_id: str = ""
    predicted_ttft_seconds: float = 0.0
    """From its arrival, as foretold at admission."""
    due_seconds: float = 0.0
    """From its arrival, the latest first token with which its targets hold; 0 where it has none."""
    coverage: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DecisionFilter:
    """Each narrows the list when set. The service adds an address to a worker's id, and a number to a request's that
    runs already: both are found without."""

    request_id: str = ""
    task: str = ""
    tenant: str = ""
    worker_id: str = ""
    kind: DecisionKind | None = None

    def takes(self, decision: Decision) -> bool:
        return (
            self.request_id in ("", decision.request_id, decision.request_id.partition(" #")[0])
            and self.task in ("", decision.task)
            and self.tenant in ("", decision.tenant)
            and self.worker_id in ("", decision.worker_id, decision.worker_id.partition(" at ")[0])
            and self.kind in (None, decision.kind)
        )


class DecisionLog:
    def __init__(self, *, max_decisions: int) -> None:
        self._decisions: collections.deque[Decision] = collections.deque(maxlen=max_decisions)
        self._num_recorded = 0

    def __len__(self) -> int:
        return len(self._decisions)

    @property
    def num_forgotten(self) -> int:
        """Made before the oldest one that is kept."""
        return self._num_recorded - len(self._decisions)

    def record(self, decision: Decision) -> None:
        self._decisions.append(decision)
        self._num_recorded += 1

    def latest(self, limit: int, only: DecisionFilter | None = None) -> tuple[Decision, ...]:
        """Newest first."""
        return tuple(itertools.islice(self._matching(only or DecisionFilter()), limit))

    def _matching(self, only: DecisionFilter) -> Iterator[Decision]:
        return (decision for decision in reversed(self._decisions) if only.takes(decision))
