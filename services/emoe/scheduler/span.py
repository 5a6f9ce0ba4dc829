"""What the request's span says of how it was scheduled: attributes beside those of the decision record."""

from __future__ import annotations

import math

from opentelemetry import trace

from emoe.core.schedule.request import QueuedRequest
from emoe.core.task_naming import NamedBy
from emoe.scheduler.dispatch import Seat


def describe_request(request: QueuedRequest, *, policy: str, named_by: NamedBy) -> None:
    """Before it waits, so that one that is refused says it, too."""
    due_seconds = request.first_token_due_seconds - request.arrived_seconds
    attributes: dict[str, str | int | float] = {
        "emoe.request_id": request.request_id,
        "emoe.task": request.task,
        "emoe.task_named_by": named_by,
        "emoe.tenant": request.tenant,
        "emoe.policy": policy,
    }
    if math.isfinite(due_seconds):
        attributes["emoe.due_seconds"] = due_seconds
    trace.get_current_span().set_attributes(attributes)


def describe_seat(seat: Seat, *, waited_seconds: float, num_refusals: int) -> None:
    """Why this worker; of the last one, where there were several."""
    trace.get_current_span().set_attributes(
        {
            "emoe.worker_id": seat.worker.worker_id,
            "emoe.queue_seconds": waited_seconds,
            "emoe.num_refusals": num_refusals,
            "emoe.num_waiting": seat.num_waiting,
            "emoe.predicted_ttft_seconds": seat.admission.predicted_ttft_seconds,
            "emoe.coverage": seat.admission.coverage,
            "emoe.reason": seat.admission.reason,
        }
    )
