"""Policies that take the first of an order, whenever a worker can take it: the baselines.

They neither look at what runs nor hold anything back.
"""

from __future__ import annotations

from collections.abc import Callable

from emoe.core.schedule.cluster import Cluster
from emoe.core.schedule.placement import Placement
from emoe.core.schedule.policy import Admission, OnDeferred
from emoe.core.schedule.request import QueuedRequest
from emoe.core.schedule.waiting import Waiting, by_arrival, by_due_time, by_work


class OrderedAdmission:
    def __init__(self, name: str, key: Callable[[QueuedRequest], float], placement: Placement, why: str) -> None:
        self.name = name
        self.on_deferred: OnDeferred | None = None
        """Never told: an order puts nothing back."""
        self._waiting = Waiting(key)
        self._placement = placement
        self._why = why

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request: QueuedRequest, now_seconds: float) -> None:  # noqa: ARG002 - its own times are enough
        self._waiting.add(request)

    def discard(self, request_id: str) -> None:
        self._waiting.discard(request_id)

    def pick(self, cluster: Cluster, now_seconds: float) -> Admission | None:
        if not self._waiting or cluster.num_free_sequences <= 0:
            return None
        request = self._waiting.first(cluster.limits, cluster.most_tokens())
        if request is None:
            return None
        self._waiting.discard(request.request_id)
        place = self._placement.place(request, cluster, cluster.fitting(request), now_seconds)
        return place.admit(request, cluster, now_seconds, self._why)


def make_fifo(placement: Placement) -> OrderedAdmission:
    """First come, first served."""
    return OrderedAdmission("fifo", by_arrival, placement, "the oldest that fits")


def make_shortest(placement: Placement) -> OrderedAdmission:
    """Least expected work first, of prompt and answer together."""
    return OrderedAdmission("shortest", by_work, placement, "the least work of those that fit")


def make_edf(placement: Placement) -> OrderedAdmission:
    """The request whose first token is due soonest; those without a target last, in order of arrival."""
    return OrderedAdmission("edf", by_due_time, placement, "due soonest of those that fit")
