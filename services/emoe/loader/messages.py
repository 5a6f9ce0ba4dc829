"""Workers and schedulers as messages: parsed once at the edge, refused there when malformed.

Every `parse_` raises InvalidRequestError, or PlanError for a peer that has another model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from emoe.core.errors import InvalidRequestError, PlanError
from emoe.core.experts import ExpertGrid
from emoe.core.routable import check_budget
from emoe.core.schedule.costs import StepCosts
from emoe.core.tasks import UNKNOWN, parse_task_name
from emoe.loader.base_files import Piece
from emoe.loader.opened import OpenModel
from emoe.loader.progress import Phase, Progress
from emoe.loader.task_mix import TaskReport
from emoe.loader.workers import Plan, Running, WorkerCounters, WorkerState
from emoe.runtime.grids import (
    ModelId,
    demand_to_proto,
    grid_to_proto,
    model_to_proto,
    parse_demand,
    parse_model,
    parse_set,
    set_to_proto,
)
from emoe.store.published import PublishedFile
from emoe.v1 import loader_pb2 as pb
from emoe.v1 import residency_pb2

MISS_POLICIES = ("reroute", "load")
MAX_NAME_CHARACTERS = 256
MAX_TASKS_REPORTED = 256
MAX_WORKERS_REPORTED = 1024
MAX_AMOUNT = 1e9


def check_model(message: residency_pb2.ModelId, own: ModelId) -> None:
    """PlanError for other weights: their experts are not ours, whatever their names."""
    theirs = parse_model(message)
    if theirs.digest != own.digest:
        raise PlanError(
            f"this loader has model {own.digest} ({own.family}), not {theirs.digest} ({theirs.family}); "
            f"start both with the same checkpoint"
        )


def parse_worker(message: pb.WorkerState, *, model: ModelId, grid: ExpertGrid) -> WorkerState:
    """BudgetError for a worker with too few slots for any plan."""
    check_model(message.model, model)
    if message.miss_policy not in MISS_POLICIES:
        raise InvalidRequestError(f"miss_policy must be one of {', '.join(MISS_POLICIES)}, not {message.miss_policy!r}")
    check_budget(message.num_slots, grid)
    return WorkerState(
        worker_id=parse_name(message.worker_id, "worker_id"),
        address=parse_name(message.address, "address"),
        num_slots=message.num_slots,
        resident=parse_set(message.resident, grid),
        free_sequences=message.free_sequences,
        max_tokens_per_sequence=message.max_tokens_per_sequence,
        num_running=message.num_running,
        num_waiting=message.num_waiting,
        ready=message.ready,
        applied_epoch=message.applied_epoch,
        miss_policy=message.miss_policy,
        slot_bytes=message.slot_bytes,
        counters=WorkerCounters(**{f.name: getattr(message.counters, f.name) for f in _COUNTER_FIELDS}),
        running=_parse_running(message.running, grid) if message.HasField("running") else None,
        step_costs=_parse_costs(message.step_costs) if message.HasField("step_costs") else None,
        num_cost_steps=message.step_costs.num_steps,
    )


def worker_to_proto(state: WorkerState, *, model: ModelId) -> pb.WorkerState:
    return pb.WorkerState(
        worker_id=state.worker_id,
        address=state.address,
        model=model_to_proto(model),
        num_slots=state.num_slots,
        resident=set_to_proto(state.resident),
        free_sequences=state.free_sequences,
        max_tokens_per_sequence=state.max_tokens_per_sequence,
        num_running=state.num_running,
        num_waiting=state.num_waiting,
        ready=state.ready,
        counters=pb.WorkerCounters(**dataclasses.asdict(state.counters)),
        applied_epoch=state.applied_epoch,
        miss_policy=state.miss_policy,
        slot_bytes=state.slot_bytes,
        step_costs=_costs_to_proto(state),
    )


def coverage_to_proto(told: Mapping[str, Mapping[str, float]]) -> list[pb.WorkerCoverage]:
    return [pb.WorkerCoverage(worker_id=worker_id, task_coverage=shares) for worker_id, shares in told.items()]


def plan_to_proto(plan: Plan, *, model: ModelId) -> pb.SubscribeResponse:
    return pb.SubscribeResponse(
        epoch=plan.epoch,
        model=model_to_proto(model),
        wanted=set_to_proto(plan.wanted),
        demand=demand_to_proto(plan.demand),
    )


def parse_tasks(message: pb.ReportTasksRequest) -> TaskReport:
    if len(message.loads) > MAX_TASKS_REPORTED:
        raise InvalidRequestError(f"{len(message.loads)} task loads; at most {MAX_TASKS_REPORTED} at once")
    task_tokens: dict[str, float] = {}
    waiting_tokens: dict[str, float] = {}
    task_requests: dict[str, int] = {}
    for load in message.loads:
        task = _parse_task(load.task)
        task_tokens[task] = task_tokens.get(task, 0.0) + _tokens_to_come(load)
        waiting_tokens[task] = waiting_tokens.get(task, 0.0) + load.num_waiting_tokens
        task_requests[task] = task_requests.get(task, 0) + load.num_running + load.num_waiting
    return TaskReport(
        task_tokens=task_tokens,
        waiting_tokens=waiting_tokens,
        task_requests=task_requests,
        placed=_parse_placed(message.workers) if message.workers else None,
        num_prompts=message.num_prompts,
    )


def progress_to_proto(progress: Progress, model: OpenModel | None) -> pb.WatchModelResponse:
    message = pb.WatchModelResponse(
        phase=_PHASES[progress.phase],
        source=progress.source,
        revision=progress.revision,
        num_bytes_done=progress.num_bytes_done,
        num_bytes_total=progress.num_bytes_total,
        bytes_per_second=progress.bytes_per_second,
    )
    if progress.failure is not None:
        error = progress.failure.error
        message.failure.CopyFrom(
            pb.ModelFailure(
                reason=error.reason.value,
                message=str(error),
                permanent=error.permanent,
                retry_seconds=progress.failure.retry_seconds,
            )
        )
    if model is not None:
        message.geometry.CopyFrom(geometry_to_proto(model))
    return message


def geometry_to_proto(model: OpenModel) -> pb.ModelGeometry:
    return pb.ModelGeometry(
        model=model_to_proto(model.id),
        grid=grid_to_proto(model.grid),
        base_bytes=model.base_bytes,
        kv_bytes_per_token=model.kv_bytes_per_token,
        max_context=model.max_context,
    )


def file_to_proto(file: PublishedFile) -> pb.CheckpointFile:
    base = [pb.ByteRange(offset=run.offset, num_bytes=run.num_bytes) for run in file.base]
    return pb.CheckpointFile(name=file.name, num_bytes=file.num_bytes, base=base)


def piece_to_proto(piece: Piece) -> pb.ReadFileResponse:
    return pb.ReadFileResponse(offset=piece.offset, data=piece.data, last=piece.last, xxh3=piece.xxh3)


def parse_name(name: str, field: str) -> str:
    if not 0 < len(name) <= MAX_NAME_CHARACTERS:
        raise InvalidRequestError(f"{field} must have 1 to {MAX_NAME_CHARACTERS} characters, not {len(name)}")
    return name


_PHASES = {
    Phase.RESOLVING: pb.MODEL_PHASE_RESOLVING,
    Phase.FETCHING: pb.MODEL_PHASE_FETCHING,
    Phase.VERIFYING: pb.MODEL_PHASE_VERIFYING,
    Phase.READY: pb.MODEL_PHASE_READY,
    Phase.FAILED: pb.MODEL_PHASE_FAILED,
}
_COUNTER_FIELDS = dataclasses.fields(WorkerCounters)
_COST_SECONDS = tuple(field.name for field in dataclasses.fields(StepCosts) if field.name.endswith("_seconds"))


def _costs_to_proto(state: WorkerState) -> pb.StepCosts | None:
    if state.step_costs is None:
        return None
    return pb.StepCosts(**dataclasses.asdict(state.step_costs), num_steps=state.num_cost_steps)


def _parse_running(message: pb.RunningDemand, grid: ExpertGrid) -> Running:
    demand = parse_demand(message.demand, grid) if message.HasField("demand") else None
    return Running(version=message.version, num_requests=message.num_requests, demand=demand)


def _parse_placed(workers: Sequence[pb.WorkerTasks]) -> dict[str, dict[str, float]]:
    if len(workers) > MAX_WORKERS_REPORTED:
        raise InvalidRequestError(f"tasks of {len(workers)} workers; at most {MAX_WORKERS_REPORTED} at once")
    return {parse_name(worker.worker_id, "worker_id"): _parse_worker_tasks(worker) for worker in workers}


def _parse_worker_tasks(worker: pb.WorkerTasks) -> dict[str, float]:
    """What runs counts however long ago it was sent."""
    if max(len(worker.recent), len(worker.running)) > MAX_TASKS_REPORTED:
        raise InvalidRequestError(
            f"{max(len(worker.recent), len(worker.running))} tasks of worker {worker.worker_id}; at most "
            f"{MAX_TASKS_REPORTED} at once"
        )
    requests = {_parse_task(task): _parse_amount(amount, f"recent[{task!r}]") for task, amount in worker.recent.items()}
    for load in worker.running:
        task = _parse_task(load.task)
        requests[task] = max(requests.get(task, 0.0), float(load.num_running))
    return requests


def _parse_amount(value: float, field: str) -> float:
    if not 0 <= value <= MAX_AMOUNT:
        raise InvalidRequestError(f"{field} must lie in 0..{MAX_AMOUNT:g}, not {value}")
    return value


def _parse_costs(message: pb.StepCosts) -> StepCosts:
    seconds = {name: _parse_amount(getattr(message, name), f"step_costs.{name}") for name in _COST_SECONDS}
    return StepCosts(**seconds, step_tokens=message.step_tokens)


def _tokens_to_come(load: pb.TaskLoad) -> float:
    """At least one for each request: a request whose tokens were not estimated is still there."""
    return float(max(load.num_prompt_tokens + load.num_expected_tokens, load.num_running + load.num_waiting))


def _parse_task(name: str) -> str:
    try:
        return parse_task_name(name) if name else UNKNOWN
    except ValueError as error:
        raise InvalidRequestError(str(error)) from error
