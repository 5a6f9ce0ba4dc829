"""What the operator says is true: `status` of a MoEDeployment.

Read leniently: another version of the operator may have written it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from emoe.api.schema import ApiModel

CONDITION_TYPES = (
    "Ready",
    "Available",
    "SpecAccepted",
    "ModelReady",
    "ServicesReady",
    "WorkersReady",
    "Progressing",
)


class StatusModel(ApiModel):
    model_config = ConfigDict(extra="ignore")


class Condition(StatusModel):
    """One aspect of the state, as in metav1.Condition."""

    type: str = Field(max_length=316)
    """Which aspect: Ready sums the others up."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: str = Field(min_length=1, max_length=1024)
    """Why, in one word for programs."""
    message: str = Field(default="", max_length=32_768)
    """Why, for people, and what to do."""
    last_transition_time: str = Field(json_schema_extra={"format": "date-time"})
    """When status last changed."""
    observed_generation: int | None = Field(default=None, ge=0, json_schema_extra={"format": "int64"})
    """The generation of the spec that this is said of."""


class Geometry(StatusModel):
    """The model's shape, from which memory is planned; kept so that a restarted loader changes nothing."""

    num_layers: int
    """Hidden layers, dense ones too."""
    moe_layers: tuple[int, ...]
    """Indices of the layers that have experts."""
    num_experts: int
    """Experts of each of those layers."""
    top_k: int
    """Experts of one token in one layer."""
    num_groups: int = 1
    """Groups that experts are routed by; 1 is no grouping."""
    topk_groups: int = 1
    """Groups that one token uses."""
    group_score_experts: int = 1
    """Best experts whose scores make a group's."""
    expert_bytes: int
    """Of one expert."""
    base_bytes: int
    """Of everything but routed experts."""
    kv_bytes_per_token: int = 0
    """Keys and values of one token in all layers; 0 when the model's configuration does not say."""
    max_context: int = 0
    """Longest sequence that the model was made for; 0 when the model's configuration does not say."""


class ModelStatus(StatusModel):
    """What the source turned out to be, and how far it is fetched."""

    revision: str | None = None
    """The commit or version that the spec's revision was resolved to."""
    digest: str | None = None
    """Names the checkpoint's content."""
    family: str | None = None
    """The model's type, such as olmoe."""
    bytes_done: int | None = None
    """Fetched so far."""
    bytes_total: int | None = None
    """To fetch in all."""
    eta_seconds: int | None = None
    """Until all is fetched, at the present rate."""
    geometry: Geometry | None = None
    """The model's shape, from which memory is planned."""


class PlanStatus(StatusModel):
    """What the expert memory buys, and what a worker takes."""

    expert_bytes: int
    """Of all routed experts."""
    base_bytes: int
    """Of everything else in the model."""
    slots: int | None = None
    """Experts that fit one worker's expert memory. With memory auto on a GPU the workers count them: left out until one
    has, then of the worker with the fewest."""
    total_experts: int
    """Experts that the model has."""
    slot_bytes: int
    """Of one place for an expert."""
    resident_bytes: int | None = None
    """Of all places of one worker; left out as slots are."""
    min_bytes: int
    """The smallest expert memory that the miss policy allows."""
    kv_bytes: int
    """Of one worker's KV cache."""
    worker_memory_bytes: int
    """What one worker takes in all: its memory limit unless the spec sets one."""


class WorkerResidency(StatusModel):
    """One worker's experts."""

    name: str
    """The pod's."""
    ready: bool
    """Whether it serves."""
    resident_experts: int
    """Experts in its memory."""
    resident_bytes: int
    """Their bytes."""
    hit_ratio: str | None = None
    """Share of expert choices that were in memory since it started, 0.00 to 1.00."""


class Residency(StatusModel):
    """Which part of the experts is in memory."""

    summary: str | None = None
    """Resident of all experts, of the worker with the fewest, such as 48/192."""
    hit_ratio: str | None = None
    """Share of expert choices that were in memory, over all workers, 0.00 to 1.00."""
    workers: tuple[WorkerResidency, ...] = Field(
        default=(),
        max_length=1000,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    """One by one."""


class WorkerCount(StatusModel):
    """How many workers there are."""

    replicas: int = 0
    """Pods that stand."""
    ready: int = 0
    """Pods that serve."""


class Images(StatusModel):
    """The images that the pods run: an upgrade of the operator changes them only when the spec changes."""

    control: str
    """Of scheduler, loader and predictor."""
    worker: str
    """Of the workers."""
    generation: int
    """The generation of the spec that they were chosen for."""


class AcceptedSpec(StatusModel):
    """The spec that was accepted last. While a newer one is refused, this one is kept served."""

    generation: int = Field(json_schema_extra={"format": "int64"})
    """The generation that it was."""
    spec: str
    """The whole of it, as JSON."""


class Status(StatusModel):
    """What the operator says is true. Written by it alone."""

    observed_generation: int | None = Field(default=None, json_schema_extra={"format": "int64"})
    """The generation of the spec that this status speaks of."""
    conditions: tuple[Condition, ...] = Field(
        default=(),
        max_length=32,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    """Aspects of the state, with reasons."""
    address: str | None = None
    """What clients inside the cluster call: host:port, gRPC."""
    model: ModelStatus | None = None
    """What the source turned out to be, and how far it is fetched."""
    plan: PlanStatus | None = None
    """What the expert memory buys, and what a worker takes."""
    residency: Residency | None = None
    """Which part of the experts is in memory."""
    workers: WorkerCount | None = None
    """How many workers there are."""
    replicas: int | None = None
    """Workers that stand, for kubectl scale."""
    selector: str | None = None
    """Labels of the workers' pods, for autoscalers."""
    images: Images | None = None
    """The images that the pods run."""
    accepted: AcceptedSpec | None = None
    """The spec that was accepted last. While a newer one is refused, this one is kept served."""

    def condition(self, kind: str) -> Condition | None:
        return next((one for one in self.conditions if one.type == kind), None)
