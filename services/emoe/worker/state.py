"""What a worker says of itself: gathered from the engine between two steps, sent as heartbeats and by GetState."""

from __future__ import annotations

import dataclasses

from emoe.core.experts import BoolGrid
from emoe.core.schedule.step_cost_fit import FittedCosts
from emoe.runtime.grids import ModelId, demand_to_proto, model_to_proto, set_to_proto
from emoe.v1 import loader_pb2 as pb
from emoe.worker.engine import Engine, EngineCounters
from emoe.worker.residency import LoadCounters
from emoe.worker.running_demand import RunningDemand


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerIdentity:
    worker_id: str
    address: str
    model: ModelId
    miss_policy: str
    max_concurrency: int
    max_waiting: int
    max_context: int
    slot_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineState:
    """Copies: the engine goes on meanwhile."""

    resident: BoolGrid
    plan_slots: int
    applied_epoch: int
    num_running: int
    num_waiting: int
    engine: EngineCounters
    loads: LoadCounters


def read_engine(engine: Engine) -> EngineState:
    residency = engine.residency
    return EngineState(
        resident=residency.table.resident.copy(),
        plan_slots=residency.plan_slots,
        applied_epoch=residency.applied_epoch,
        num_running=engine.num_running,
        num_waiting=engine.num_waiting,
        engine=dataclasses.replace(engine.counters),
        loads=dataclasses.replace(residency.counters),
    )


def state_to_proto(
    identity: WorkerIdentity,
    state: EngineState,
    *,
    num_requests: int,
    ready: bool,
    step_costs: FittedCosts | None = None,
) -> pb.WorkerState:
    return pb.WorkerState(
        worker_id=identity.worker_id,
        address=identity.address,
        model=model_to_proto(identity.model),
        num_slots=state.plan_slots,
        resident=set_to_proto(state.resident),
        free_sequences=max(0, identity.max_concurrency - num_requests),
        max_tokens_per_sequence=identity.max_context,
        num_running=state.num_running,
        num_waiting=state.num_waiting,
        ready=ready,
        counters=pb.WorkerCounters(
            num_expert_hits=state.engine.num_expert_hits,
            num_expert_choices=state.engine.num_expert_choices,
            num_prompt_tokens=state.engine.num_prompt_tokens,
            num_completion_tokens=state.engine.num_completion_tokens,
            num_prompts=state.engine.num_prompts,
            num_experts_loaded=state.loads.num_experts_loaded,
            num_bytes_loaded=state.loads.num_bytes_loaded,
            stall_seconds=state.loads.stall_seconds,
        ),
        applied_epoch=state.applied_epoch,
        miss_policy=identity.miss_policy,
        slot_bytes=identity.slot_bytes,
        step_costs=None if step_costs is None else _costs_to_proto(step_costs),
    )


def running_to_proto(running: RunningDemand, *, told_version: int) -> pb.RunningDemand:
    """Without the demand when the same stream was told it before: of a large model it is the most of a heartbeat."""
    message = pb.RunningDemand(version=running.version, num_requests=running.num_requests)
    if running.version != told_version:
        message.demand.CopyFrom(demand_to_proto(running.demand))
    return message


def _costs_to_proto(fitted: FittedCosts) -> pb.StepCosts:
    return pb.StepCosts(**dataclasses.asdict(fitted.costs), num_steps=fitted.num_steps)
