"""Where a request that is to start goes (the `Placement` seam): one of the workers that may take it now.

Each looks over all workers in a few vector steps. Which workers may take it is the policy's business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

from emoe.core.schedule.cluster import Cluster, RowArray
from emoe.core.schedule.policy import Admission
from emoe.core.schedule.request import QueuedRequest
from emoe.core.schedule.table import FloatArray


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    row: int
    """Of the cluster, as it is now."""
    wait_seconds: float
    """From now to the first token."""

    def admit(self, request: QueuedRequest, cluster: Cluster, now_seconds: float, why: str) -> Admission:
        coverage = float(cluster.coverage(request.task)[self.row])
        return Admission(
            request=request,
            worker_id=cluster.worker_id(self.row),
            predicted_ttft_seconds=now_seconds - request.arrived_seconds + self.wait_seconds,
            coverage=coverage,
            reason=f"{why}; first token in {self.wait_seconds:.3f} s, coverage {coverage:.2f}",
        )


class Placement(Protocol):
    name: str

    def place(
        self,
        request: QueuedRequest,
        cluster: Cluster,
        rows: RowArray,
        now_seconds: float,
        *,
        wait_seconds: FloatArray | None = None,
    ) -> Place:
        """On one of those rows; there is one at least. `wait_seconds`: the cluster's forecast for all, if known."""
        ...


FREE_SEQUENCE_SECONDS = 1e-6
"""Settles ties."""
DEFAULT_LEFT_SECONDS = 2.0
"""What a request without targets has left, when coverage is weighed against wait."""


class MostFree:
    """The worker with the most free sequences."""

    name = "most-free"

    def place(
        self,
        request: QueuedRequest,
        cluster: Cluster,
        rows: RowArray,
        now_seconds: float,
        *,
        wait_seconds: FloatArray | None = None,
    ) -> Place:
        row = int(rows[cluster.free_sequences[rows].argmax()])
        if wait_seconds is not None:
            return Place(row=row, wait_seconds=float(wait_seconds[row]))
        return Place(row=row, wait_seconds=cluster.wait_seconds_on(row, request, now_seconds))


class LeastWait:
    """The worker that would give the first token soonest; between equals, the one with the most free sequences."""

    name = "least-wait"

    def place(
        self,
        request: QueuedRequest,
        cluster: Cluster,
        rows: RowArray,
        now_seconds: float,
        *,
        wait_seconds: FloatArray | None = None,
    ) -> Place:
        if len(rows) == 1:
            return _only(rows, request, cluster, now_seconds)
        forecast = cluster.predict_wait_seconds(request, now_seconds) if wait_seconds is None else wait_seconds
        worth = forecast[rows] - FREE_SEQUENCE_SECONDS * cluster.free_sequences[rows]
        row = int(rows[worth.argmin()])
        return Place(row=row, wait_seconds=float(forecast[row]))


class Residency:
    """Of the workers that give the first token in time, the one whose residents meet most of the task's demand, for its
    wait: a hundredth of the demand is worth a hundredth of the time that is left. Where none does, the soonest one.

    A request without targets is given DEFAULT_LEFT_SECONDS, so that it neither queues at one worker while others idle
    nor goes to whoever is a millisecond sooner."""

    name = "residency"

    def place(
        self,
        request: QueuedRequest,
        cluster: Cluster,
        rows: RowArray,
        now_seconds: float,
        *,
        wait_seconds: FloatArray | None = None,
    ) -> Place:
        if len(rows) == 1:
            return _only(rows, request, cluster, now_seconds)
        forecast = cluster.predict_wait_seconds(request, now_seconds) if wait_seconds is None else wait_seconds
        left = request.first_token_due_seconds - now_seconds
        in_time = rows[forecast[rows] <= left]
        if len(in_time):
            rows = in_time
        worth = forecast[rows] - FREE_SEQUENCE_SECONDS * cluster.free_sequences[rows]
        if len(in_time):
            worth -= min(left, DEFAULT_LEFT_SECONDS) * cluster.coverage(request.task)[rows]
        row = int(rows[worth.argmin()])
        return Place(row=row, wait_seconds=float(forecast[row]))


def _only(rows: RowArray, request: QueuedRequest, cluster: Cluster, now_seconds: float) -> Place:
    row = int(rows[0])
    return Place(row=row, wait_seconds=cluster.wait_seconds_on(row, request, now_seconds))


PLACEMENTS: Mapping[str, Placement] = {
    placement.name: placement for placement in (MostFree(), LeastWait(), Residency())
}
