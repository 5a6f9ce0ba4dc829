"""The decision record as messages: one answer to ListDecisions."""

from __future__ import annotations

from emoe.core.schedule.decisions import Decision, DecisionFilter, DecisionKind, DecisionLog
from emoe.v1 import scheduler_pb2 as pb

DEFAULT_LIMIT = 100
MAX_LIMIT = 10_000
"""A few megabytes in one message."""

_KIND_TO_PROTO = {kind: pb.DecisionKind.Value(f"DECISION_KIND_{kind.name}") for kind in DecisionKind}
_KIND_FROM_PROTO = {number: kind for kind, number in _KIND_TO_PROTO.items()}


def list_decisions(
    log: DecisionLog, request: pb.ListDecisionsRequest, *, now_seconds: float, unix_seconds: float
) -> pb.ListDecisionsResponse:
    """`now_seconds` of the decisions' clock is `unix_seconds` of the calendar's."""
    only = DecisionFilter(
        request_id=request.request_id,
        task=request.task,
        tenant=request.tenant,
        worker_id=request.worker_id,
        kind=_KIND_FROM_PROTO.get(request.kind),
    )
    limit = min(request.limit or DEFAULT_LIMIT, MAX_LIMIT)
    return pb.ListDecisionsResponse(
        decisions=[_to_proto(one, unix_seconds - now_seconds) for one in log.latest(limit, only)],
        num_forgotten=log.num_forgotten,
    )


def _to_proto(decision: Decision, clock_offset_seconds: float) -> pb.Decision:
    return pb.Decision(
        unix_seconds=decision.at_seconds + clock_offset_seconds,
        kind=_KIND_TO_PROTO[decision.kind],
        request_id=decision.request_id,
        task=decision.task,
        tenant=decision.tenant,
        worker_id=decision.worker_id.partition(" at ")[0],
        reason=decision.reason,
        age_seconds=decision.age_seconds,
        predicted_ttft_seconds=decision.predicted_ttft_seconds,
        due_seconds=decision.due_seconds,
        coverage=decision.coverage,
        num_waiting=decision.num_waiting,
        num_workers=decision.num_workers,
    )
