"""`ontime`: as many requests as possible meet their targets, and every one is served (the policy that is our own).

Earliest due time first, among those that can still be in time. When more is due by some moment than the workers can
do until then, the longest of it gives way (`DueBuckets`): one long prompt makes room for several short ones. What gave
way, or is late already, runs when nothing else can, and after a bound of waiting whatever else there is. A prompt
goes only where the prompts before it are nearly done, so that the order is kept here, not in a worker's queue, and
where what runs can take the delay; until then it waits.
"""

from __future__ import annotations

import numpy as np

from emoe.core.schedule.buckets import DueBuckets, due_of
from emoe.core.schedule.cluster import BoolArray, Cluster
from emoe.core.schedule.placement import Place, Placement
from emoe.core.schedule.policy import Admission
from emoe.core.schedule.request import QueuedRequest
from emoe.core.schedule.waiting import Waiting, by_arrival

PATIENCE_SECONDS = 60.0
"""What waits without a target is due after so long; and so long after it came, one that is late runs next."""
LATE_EVERY = 8
"""At most so many-th admission is one of a late request out of its turn."""
MAX_LOOKS = 4
"""Candidates that one pick tries; the next pick goes on."""
LEAD_STEPS = 0.5
"""Full steps of prompts that a worker may have before it when it is given the next."""
URGENT_RATIO = 0.6
PACE_RATIO = 0.65
RATE_RATIO = 0.9
"""Of the workers' rate at prompts, what is counted on."""


class OnTimeAdmission:
    name = "ontime"

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._buckets = DueBuckets()
        self._hopeful = Waiting(_by_due)
        self._deferred = Waiting(_by_due)
        self._late = Waiting(by_arrival)
        self._num_until_late = LATE_EVERY

    def __len__(self) -> int:
        return len(self._hopeful) + len(self._deferred) + len(self._late)

    def add(self, request: QueuedRequest, now_seconds: float) -> None:  # noqa: ARG002 - its own times are enough
        self.discard(request.request_id)
        self._hopeful.add(request)
        self._buckets.add(request.request_id, _by_due(request), request.num_prompt_tokens)

    def discard(self, request_id: str) -> None:
        if self._hopeful.discard(request_id) is not None:
            self._buckets.discard(request_id)
        self._deferred.discard(request_id)
        self._late.discard(request_id)

    def pick(self, cluster: Cluster, now_seconds: float) -> Admission | None:
        if not len(self) or cluster.num_free_sequences <= 0:
            return None
        open_rows = open_workers(cluster, now_seconds)
        if not open_rows.any():
            return None
        self._give_way(cluster, now_seconds)
        return (
            self._pick_overdue(cluster, open_rows, now_seconds)
            or self._pick_in_time(self._hopeful, cluster, open_rows, now_seconds)
            or self._pick_rest(cluster, open_rows, now_seconds)
        )

    def _give_way(self, cluster: Cluster, now_seconds: float) -> None:
        for request_id in self._buckets.take_overdue(now_seconds):
            request = self._hopeful.discard(request_id)
            if request is not None:
                self._late.add(request)
        rate = RATE_RATIO * cluster.prompt_tokens_per_second()
        busy = cluster.num_prompt_tokens
        for _ in range(MAX_LOOKS):
            longest = self._buckets.excess(now_seconds, tokens_per_second=rate, busy_tokens=busy)
            if longest is None:
                return
            request = self._hopeful.discard(longest)
            self._buckets.discard(longest)
            if request is not None:
                self._deferred.add(request)

    def _pick_overdue(self, cluster: Cluster, open_rows: BoolArray, now_seconds: float) -> Admission | None:
        self._num_until_late -= 1
        if self._num_until_late > 0:
            return None
        request = self._late.first(cluster.limits, cluster.most_tokens())
        if request is None or now_seconds - request.arrived_seconds < PATIENCE_SECONDS:
            return None
        may = open_rows & cluster.fits(request)
        if not may.any():
            return None
        self._num_until_late = LATE_EVERY
        return self._admit(request, cluster, may, now_seconds, "late, and the longest waiting")

    def _pick_in_time(
        self, queue: Waiting, cluster: Cluster, open_rows: BoolArray, now_seconds: float
    ) -> Admission | None:
        held: list[QueuedRequest] = []
        admission = None
        for _ in range(MAX_LOOKS):
            request = queue.first(cluster.limits, cluster.most_tokens())
            if request is None:
                break
            wait = cluster.predict_wait_seconds(request, now_seconds)
            left = _by_due(request) - now_seconds
            fits = open_rows & cluster.fits(request)
            in_time = fits & (wait <= left)
            if not in_time.any():
                self.discard(request.request_id)
                self._late.add(request)
                continue
            may = in_time & harmless_rows(request, cluster)
            patience = URGENT_RATIO * (_by_due(request) - request.arrived_seconds)
            may &= (wait > left - patience) | (cluster.table.young_slack >= cluster.delay_seconds(request))
            if may.any():
                admission = self._admit(request, cluster, may, now_seconds, "due soonest of those that can be in time")
                break
            queue.discard(request.request_id)
            held.append(request)
        for request in held:
            queue.add(request)
        return admission

    def _pick_rest(self, cluster: Cluster, open_rows: BoolArray, now_seconds: float) -> Admission | None:
        if self._hopeful:
            return None
        admission = self._pick_in_time(self._deferred, cluster, open_rows, now_seconds)
        if admission is not None or self._deferred:
            return admission
        request = self._late.first(cluster.limits, cluster.most_tokens())
        if request is None:
            return None
        may = open_rows & cluster.fits(request) & harmless_rows(request, cluster)
        if not may.any():
            return None
        return self._admit(request, cluster, may, now_seconds, "late, and nothing that can be in time waits")

    def _admit(
        self, request: QueuedRequest, cluster: Cluster, may: BoolArray, now_seconds: float, why: str
    ) -> Admission:
        self.discard(request.request_id)
        place: Place = self._placement.place(request, cluster, may, now_seconds)
        return place.admit(request, cluster, now_seconds, why)


def open_workers(cluster: Cluster, now_seconds: float) -> BoolArray:
    """With a free sequence, and nearly done with the prompts that they have."""
    table = cluster.table
    lead = LEAD_STEPS * (table.step + table.prompt_seconds * table.room)
    is_open: BoolArray = (table.free > 0.0) & (table.clear - now_seconds <= lead)
    return is_open


def harmless_rows(request: QueuedRequest, cluster: Cluster) -> BoolArray:
    """Where no running request would lose its targets by it."""
    table = cluster.table
    harmless: BoolArray = table.slack >= cluster.delay_seconds(request)
    tpot = np.minimum(table.tpot, request.tpot_seconds or np.inf)
    step = table.context_token_seconds * float(request.num_prompt_tokens)
    step += table.step + table.sequence_seconds
    harmless &= (step <= PACE_RATIO * tpot) | (table.decoding == 0.0)
    return harmless


def _by_due(request: QueuedRequest) -> float:
    return due_of(request, patience_seconds=PATIENCE_SECONDS)
