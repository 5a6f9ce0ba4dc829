"""Writes the desk's decisions down, each with what was so when it was made."""

from __future__ import annotations

import math

from emoe.core.schedule.cluster import Cluster
from emoe.core.schedule.decisions import Decision, DecisionKind, DecisionLog
from emoe.core.schedule.request import QueuedRequest


class DecisionWriter:
    def __init__(self, log: DecisionLog, cluster: Cluster) -> None:
        self._log = log
        self._cluster = cluster

    def write(
        self,
        kind: DecisionKind,
        request: QueuedRequest,
        now_seconds: float,
        *,
        num_waiting: int,
        reason: str,
        worker_id: str = "",
        predicted_ttft_seconds: float = 0.0,
        coverage: float = 0.0,
    ) -> None:
        due = request.first_token_due_seconds
        self._log.record(
            Decision(
                at_seconds=now_seconds,
                kind=kind,
                request_id=request.request_id,
                task=request.task,
                tenant=request.tenant,
                worker_id=worker_id,
                reason=reason,
                age_seconds=now_seconds - request.arrived_seconds,
                predicted_ttft_seconds=predicted_ttft_seconds,
                due_seconds=due - request.arrived_seconds if math.isfinite(due) else 0.0,
                coverage=coverage,
                num_waiting=num_waiting,
                num_workers=self._cluster.num_workers,
            )
        )
