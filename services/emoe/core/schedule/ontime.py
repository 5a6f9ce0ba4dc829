"""`ontime`: as many requests as possible meet their targets, and every one is served (the policy that is our own).

Earliest due time first, among those that can still be in time. When more is due by some moment than the workers can
do until then, the longest of it gives way (`DueBuckets`): one long prompt makes room for several short ones. What gave
way, or is late already, runs when nothing else can, and after a bound of waiting whatever else there is. A prompt
goes only where the prompts before it are nearly done, so that the order is kept here, not in a worker's queue, and
where what runs can take the delay; until then it waits.
"""

from __future__ import annotations

import math

from emoe.core.schedule.buckets import Capacity, DueBuckets, due_of
from emoe.core.schedule.capacity import answer_token_weight, read_capacity, work_tokens
from emoe.core.schedule.cluster import Cluster, RowArray
from emoe.core.schedule.openings import Openings, TurnedDown
from emoe.core.schedule.placement import Place, Placement
from emoe.core.schedule.policy import Admission, OnDeferred
from emoe.core.schedule.request import QueuedRequest
from emoe.core.schedule.waiting import Waiting, by_arrival

PATIENCE_SECONDS = 60.0
"""What waits without a target is due after so long; and so long after it came, one that is late runs out of turn."""
LATE_EVERY = 8
"""At most one of so many admissions is such a late one."""
MAX_LOOKS = 8
"""Candidates that one pick tries; the next one goes on."""
MAX_GIVE_WAY = 8
"""In one look."""
RETRY_SECONDS = 0.004
"""After a pick that let none of its candidates in: too short for much to have changed."""
LOOK_SECONDS = 0.01
"""Between two looks at whether more is due than can be done."""
RATE_RATIO = 1.5
"""Of what the workers can do, what is counted on: what is due until then need not be done by then, only begun."""

GAVE_WAY = "gave way: more is due than the workers can do until then, and its prompt and answer are among the longest"
OVERDUE = "late: due by now, by its targets or by how long anything waits"
TOO_LATE = "late: no worker would be in time"


class OnTimeAdmission:
    """Of three queues: hopeful, deferred (it gave way, and may still be in time), late."""

    name = "ontime"

    def __init__(self, placement: Placement) -> None:
        self.on_deferred: OnDeferred | None = None
        self._placement = placement
        self._buckets = DueBuckets()
        self._hopeful = Waiting(_due)
        self._deferred = Waiting(_due)
        self._late = Waiting(by_arrival)
        self._new: dict[str, QueuedRequest] = {}
        """Hopeful ones that are not among the buckets yet: what their work is, the next look says."""
        self._num_until_late = 0
        self._patience_seconds = math.inf
        """Nothing that is late has waited too long before then."""
        self._next_look_seconds = -math.inf
        self._missed_seconds = -math.inf
        """When none of the candidates could be let in where there was room."""

    def __len__(self) -> int:
        return len(self._hopeful) + len(self._deferred) + len(self._late)

    def add(self, request: QueuedRequest, now_seconds: float) -> None:  # noqa: ARG002 - its own times are enough
        self.discard(request.request_id)
        self._hopeful.add(request)
        self._new[request.request_id] = request

    def discard(self, request_id: str) -> None:
        if self._hopeful.discard(request_id) is not None:
            if self._new.pop(request_id, None) is None:
                self._buckets.discard(request_id)
        elif self._deferred.discard(request_id) is None:
            self._late.discard(request_id)

    def pick(self, cluster: Cluster, now_seconds: float) -> Admission | None:
        if cluster.num_free_sequences <= 0 or 0.0 <= now_seconds - self._missed_seconds < RETRY_SECONDS:
            return None
        openings = Openings(cluster, now_seconds)
        if not openings.num:
            return None
        if not self._next_look_seconds - LOOK_SECONDS <= now_seconds < self._next_look_seconds:
            self._next_look_seconds = now_seconds + LOOK_SECONDS
            self._look(cluster, now_seconds)
        admission = (
            self._pick_waited_long(cluster, openings, now_seconds)
            or self._pick_in_time(self._hopeful, cluster, openings, now_seconds)
            or self._pick_rest(cluster, openings, now_seconds)
        )
        if admission is None:
            self._missed_seconds = now_seconds
        return admission

    def _look(self, cluster: Cluster, now_seconds: float) -> None:
        # While a sequence is free for each that waits, only prompts stand in each other's way.
        answer_weight = answer_token_weight(cluster) if len(self) > cluster.num_free_sequences else 0.0
        for request_id, request in self._new.items():
            self._buckets.add(request_id, _due(request), work_tokens(request, answer_weight))
        self._new.clear()
        self._see_overdue(now_seconds)
        self._give_way(read_capacity(cluster, answer_weight, ratio=RATE_RATIO), now_seconds)

    def _see_overdue(self, now_seconds: float) -> None:
        for request_id in self._buckets.take_overdue(now_seconds):
            gone = self._hopeful.discard(request_id)
            if gone is not None:
                self._put_behind(gone, now_seconds, OVERDUE)
        for request in self._deferred.take_until(now_seconds):
            self._put_behind(request, now_seconds, OVERDUE)

    def _put_behind(self, request: QueuedRequest, now_seconds: float, why: str) -> None:
        self._late.add(request)
        if self.on_deferred is not None:
            self.on_deferred(request, now_seconds, why)
        self._patience_seconds = min(self._patience_seconds, request.arrived_seconds + PATIENCE_SECONDS)

    def _give_way(self, capacity: Capacity, now_seconds: float) -> None:
        for request_id in self._buckets.take_excess(now_seconds, capacity, most=MAX_GIVE_WAY):
            request = self._hopeful.discard(request_id)
            if request is not None:
                self._deferred.add(request)
                if self.on_deferred is not None:
                    self.on_deferred(request, now_seconds, GAVE_WAY)

    def _pick_waited_long(self, cluster: Cluster, openings: Openings, now_seconds: float) -> Admission | None:
        if self._num_until_late > 0 or now_seconds < self._patience_seconds:
            return None
        self._patience_seconds = self._late.least_key + PATIENCE_SECONDS
        request = self._late.first(cluster.limits, cluster.most_tokens())
        if request is None or now_seconds - request.arrived_seconds < PATIENCE_SECONDS:
            return None
        rows = openings.fitting(request).nonzero()[0]
        if not len(rows):
            return None
        self._num_until_late = LATE_EVERY
        return self._admit(request, cluster, rows, now_seconds, "late, and waited longest")

    def _pick_in_time(
        self, queue: Waiting, cluster: Cluster, openings: Openings, now_seconds: float
    ) -> Admission | None:
        if not queue:
            return None
        admission, too_late = None, []
        for due, _, _, request in queue.first_ones(cluster.limits, cluster.most_tokens(), MAX_LOOKS):
            place = openings.find(request, due, self._placement)
            if isinstance(place, Place):
                admission = place.admit(request, cluster, now_seconds, "due soonest of those in time")
                break
            if place is TurnedDown.LATE:
                too_late.append(request)
        for request in too_late:
            self.discard(request.request_id)
            self._put_behind(request, now_seconds, TOO_LATE)
        if admission is not None:
            self._take(admission)
        return admission

    def _pick_rest(self, cluster: Cluster, openings: Openings, now_seconds: float) -> Admission | None:
        if self._hopeful:
            return None
        admission = self._pick_in_time(self._deferred, cluster, openings, now_seconds)
        if admission is not None or self._deferred or not self._late:
            return admission
        request = self._late.first(cluster.limits, cluster.most_tokens())
        if request is None:
            return None
        rows = openings.harmless(request, cluster.delay_seconds(request)).nonzero()[0]
        if not len(rows):
            return None
        return self._admit(request, cluster, rows, now_seconds, "late, and nothing that can be in time waits")

    def _admit(
        self, request: QueuedRequest, cluster: Cluster, rows: RowArray, now_seconds: float, why: str
    ) -> Admission:
        admission = self._placement.place(request, cluster, rows, now_seconds).admit(request, cluster, now_seconds, why)
        self._take(admission)
        return admission

    def _take(self, admission: Admission) -> None:
        self._num_until_late -= 1
        self.discard(admission.request.request_id)


def _due(request: QueuedRequest) -> float:
    return due_of(request, patience_seconds=PATIENCE_SECONDS)
