"""A loader's messages as the plan reads them: parsed once, here, and refused with InvalidRequestError if malformed."""

from __future__ import annotations

from emoe.core.errors import InvalidRequestError
from emoe.runtime.grids import parse_grid, parse_model
from emoe.v1 import loader_pb2 as pb
from emoe_operator.observed import Geometry, ModelFailure, ModelPhase, ModelView, WorkerView

MAX_WORKERS = 1000
MAX_MESSAGE_CHARACTERS = 1000

_PHASES = {
    pb.MODEL_PHASE_RESOLVING: ModelPhase.RESOLVING,
    pb.MODEL_PHASE_FETCHING: ModelPhase.FETCHING,
    pb.MODEL_PHASE_VERIFYING: ModelPhase.VERIFYING,
    pb.MODEL_PHASE_READY: ModelPhase.READY,
    pb.MODEL_PHASE_FAILED: ModelPhase.FAILED,
}


def parse_model_view(message: pb.WatchModelResponse) -> ModelView:
    phase = _PHASES.get(message.phase)
    if phase is None:
        raise InvalidRequestError(f"the loader told of a phase {message.phase} that this operator does not know")
    return ModelView(
        phase=phase,
        revision=message.revision,
        num_bytes_done=message.num_bytes_done,
        num_bytes_total=message.num_bytes_total,
        bytes_per_second=message.bytes_per_second,
        failure=_failure(message.failure) if message.HasField("failure") else None,
        geometry=_geometry(message.geometry) if message.HasField("geometry") else None,
    )


def parse_worker_views(message: pb.WatchWorkersResponse) -> tuple[WorkerView, ...]:
    """By name, so that two lists are equal when they say the same."""
    views = [_worker(state) for state in message.workers[:MAX_WORKERS]]
    return tuple(sorted(views, key=lambda view: view.name))


def _failure(message: pb.ModelFailure) -> ModelFailure:
    return ModelFailure(
        reason=message.reason if message.reason.isidentifier() else "Failed",
        message=message.message[:MAX_MESSAGE_CHARACTERS],
        permanent=message.permanent,
        retry_seconds=message.retry_seconds,
    )


def _geometry(message: pb.ModelGeometry) -> Geometry:
    model = parse_model(message.model)
    return Geometry(
        digest=model.digest,
        family=model.family,
        grid=parse_grid(message.grid),
        base_bytes=message.base_bytes,
        kv_bytes_per_token=message.kv_bytes_per_token,
        max_context=message.max_context,
    )


def _worker(state: pb.WorkerState) -> WorkerView:
    return WorkerView(
        name=state.worker_id,
        ready=state.ready,
        num_resident=int.from_bytes(state.resident.bits, "little").bit_count(),
        num_slots=state.num_slots,
        slot_bytes=state.slot_bytes,
        num_hits=state.counters.num_expert_hits,
        num_choices=state.counters.num_expert_choices,
    )
