"""`emoe`: the paper's admission (eMoE, section 4.4), with what its printed algorithm leaves open decided.

The strictest request first, where its prompt makes nobody late who is in time now: t_i = dE + (W + n_i G_i) c + r_i of
each running request is kept as slack, so the rule is one comparison a worker. The candidate's own target counts like
theirs. One that is late already gets what is left, and none is kept waiting beyond a bound. The token total is that of
the sequences' room, not of their number.
"""

from __future__ import annotations

from emoe.core.schedule.cluster import Cluster, RowArray
from emoe.core.schedule.placement import Placement
from emoe.core.schedule.policy import Admission, OnDeferred
from emoe.core.schedule.request import QueuedRequest
from emoe.core.schedule.waiting import Waiting, by_arrival

PATIENCE_SECONDS = 60.0
"""After so long a request runs wherever it does the least harm. What has no target is due then, too."""
STARVING_EVERY = 8
"""At most one of so many admissions is such a one: else, when too much is asked for a minute, all are, and all late."""
MAX_LOOKS = 4
"""Candidates that one pick tries; the paper tries all."""

TOO_LATE = "late: no worker that is free would be in time"


class EmoeAdmission:
    name = "emoe"

    def __init__(self, placement: Placement) -> None:
        self.on_deferred: OnDeferred | None = None
        self._placement = placement
        self._hopeful = Waiting(_due)
        self._late = Waiting(by_arrival)
        self._num_until_starving = 0

    def __len__(self) -> int:
        return len(self._hopeful) + len(self._late)

    def add(self, request: QueuedRequest, now_seconds: float) -> None:  # noqa: ARG002 - its own times are enough
        self.discard(request.request_id)
        self._hopeful.add(request)

    def discard(self, request_id: str) -> None:
        self._hopeful.discard(request_id)
        self._late.discard(request_id)

    def pick(self, cluster: Cluster, now_seconds: float) -> Admission | None:
        if not len(self) or cluster.num_free_sequences <= 0:
            return None
        admission = (
            self._pick_starving(cluster, now_seconds)
            or self._pick_in_time(cluster, now_seconds)
            or self._pick_late(cluster, now_seconds)
        )
        if admission is not None:
            self._num_until_starving -= 1
        return admission

    def _pick_starving(self, cluster: Cluster, now_seconds: float) -> Admission | None:
        if self._num_until_starving > 0 and self._hopeful:
            return None
        request = self._late.first(cluster.limits, cluster.most_tokens())
        if request is None or now_seconds - request.arrived_seconds < PATIENCE_SECONDS:
            return None
        self._num_until_starving = STARVING_EVERY
        rows = cluster.fitting(request)
        spare = (cluster.least_slack_seconds - cluster.delay_seconds(request))[rows]
        return self._admit(request, cluster, rows[spare == spare.max()], now_seconds, "waited longest")

    def _pick_in_time(self, cluster: Cluster, now_seconds: float) -> Admission | None:
        admission, too_late = None, []
        for due, _, _, request in self._hopeful.first_ones(cluster.limits, cluster.most_tokens(), MAX_LOOKS):
            wait, delay = cluster.forecast(request, now_seconds)
            in_time = (wait <= due - now_seconds) & cluster.fits(request)
            rows = (in_time & (cluster.least_slack_seconds >= delay)).nonzero()[0]
            if len(rows):
                place = self._placement.place(request, cluster, rows, now_seconds, wait_seconds=wait)
                admission = place.admit(request, cluster, now_seconds, "strictest that makes nobody late")
                break
            if not in_time.any():
                too_late.append(request)
        for request in too_late:
            self._hopeful.discard(request.request_id)
            self._late.add(request)
            if self.on_deferred is not None:
                self.on_deferred(request, now_seconds, TOO_LATE)
        if admission is not None:
            self.discard(admission.request.request_id)
        return admission

    def _pick_late(self, cluster: Cluster, now_seconds: float) -> Admission | None:
        request = self._late.first(cluster.limits, cluster.most_tokens())
        if request is None:
            return None
        harmless = cluster.least_slack_seconds >= cluster.delay_seconds(request)
        rows = (cluster.fits(request) & harmless).nonzero()[0]
        if not len(rows):
            return None
        return self._admit(request, cluster, rows, now_seconds, "late, and makes nobody else late")

    def _admit(
        self, request: QueuedRequest, cluster: Cluster, rows: RowArray, now_seconds: float, why: str
    ) -> Admission:
        self.discard(request.request_id)
        return self._placement.place(request, cluster, rows, now_seconds).admit(request, cluster, now_seconds, why)


def _due(request: QueuedRequest) -> float:
    return min(request.first_token_due_seconds, request.arrived_seconds + PATIENCE_SECONDS)
