"""What a user asks for: `spec` of a MoEDeployment. Docstrings here are what `kubectl explain` prints.

What the API server can know is refused here; what takes the model's geometry is decided later, by `core.capacity`.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from emoe.api.quantity import CountOrPercent, Memory, PromptsOrAuto
from emoe.api.schema import ApiModel, Rule
from emoe.api.services import AnnotationMap, Cache, Services, Tracing, Workers
from emoe.api.source import (
    MAX_CHARACTERS,
    PARENT_PATTERN,
    PATTERN,
    SOURCE_FORMS,
    ModelSource,
    is_source,
    parse_source,
)
from emoe.core.refresh import DEFAULT_REFRESH_INTERVAL_PROMPTS
from emoe.core.tasks import MAX_EXAMPLE_CHARACTERS, MAX_EXAMPLES, check_examples

TASK_PATTERN = r"^[a-z][a-z0-9_-]{0,62}$"
Example = Annotated[str, Field(min_length=1, max_length=MAX_EXAMPLE_CHARACTERS)]
ExpertIndex = Annotated[int, Field(ge=0, le=4095)]


def _is_zero(value: CountOrPercent | None) -> bool:
    return value is not None and value.is_zero


def _refuse_duplicates(values: list[int] | list[str], noun: str) -> None:
    twice = sorted({str(value) for value in values if values.count(value) > 1})  # type: ignore[arg-type]
    if twice:
        raise ValueError(f"{noun} {', '.join(twice)} is named twice; keep one")


class SecretRef(ApiModel):
    """A Secret in the resource's own namespace."""

    name: str = Field(min_length=1, max_length=253)
    """Its name. Its keys become environment variables of the loader: HF_TOKEN, AWS_ACCESS_KEY_ID and so on."""


class Model(ApiModel):
    """Which model is served. It cannot be changed: make a second resource, and move the clients over."""

    source: str = Field(max_length=MAX_CHARACTERS)
    """Where the checkpoint lies: hf://ORGANISATION/NAME, s3://BUCKET/PREFIX, https://HOST/PATH, pvc://CLAIM/PATH, or
    demo:// for the small model inside the images."""
    revision: str | None = Field(default=None, min_length=1, max_length=255, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")
    """hf:// only: a branch, tag or commit; main if left out. It is resolved to a commit once."""
    secret_ref: SecretRef | None = None
    """Credentials for the source. The loader alone gets them."""

    rules = (
        Rule(
            cel=f"self.source.matches(r'{PATTERN}') && !self.source.matches(r'{PARENT_PATTERN}')",
            message=f"the source is not understood; write {SOURCE_FORMS}",
            holds=lambda model: is_source(model.source),
            field=".source",
        ),
        Rule(
            cel="!has(self.revision) || self.source.startsWith('hf://')",
            message="only hf:// sources have revisions; leave it out, or name the version in the source's path",
            holds=lambda model: model.revision is None or model.source.startswith("hf://"),
            field=".revision",
        ),
    )

    @property
    def parsed_source(self) -> ModelSource:
        return parse_source(self.source)


class PinnedExperts(ApiModel):
    """Experts of one layer that are never evicted."""

    layer: int = Field(ge=0, le=1023)
    """The model's own index of the layer, from 0."""
    experts: tuple[ExpertIndex, ...] = Field(
        min_length=1, max_length=512, json_schema_extra={"x-kubernetes-list-type": "set"}
    )
    """Indices of the experts in that layer, from 0."""

    @field_validator("experts")
    @classmethod
    def _names_an_expert_once(cls, experts: tuple[int, ...]) -> tuple[int, ...]:
        _refuse_duplicates(list(experts), "expert")
        return experts


class Experts(ApiModel):
    """How much memory each worker gives to experts, and which of them stay in it."""

    memory: Memory = Memory("25%")
    """Of each worker: a share of all expert bytes (25%), a quantity (8Gi), or auto: what the worker's memory limit
    leaves, or on a GPU what the worker finds free of it when it starts."""
    miss_policy: Literal["reroute", "load"] = "reroute"
    """A token's expert is not in memory. reroute: resident experts answer, without a stall. load: the step waits for
    it, and answers are exactly the full model's."""
    strategy: Literal["emoe"] = "emoe"
    """How residents are chosen. emoe: by the demand that the predictor foretells for the coming tasks."""
    eviction: Literal["frequency", "lru", "demand"] | None = None
    """missPolicy load only: whose place is taken, that of the expert which recent tokens chose least, of the least
    recently used or of the least wanted one; frequency if left out."""
    pinned: tuple[PinnedExperts, ...] = Field(
        default=(),
        max_length=256,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["layer"]},
    )
    """Experts that always stay in memory; they take their places from the same budget."""
    refresh_interval_prompts: PromptsOrAuto = DEFAULT_REFRESH_INTERVAL_PROMPTS
    """Prompts between two predictions (p in the eMoE paper). auto: more of them while predictions change little, fewer
    when they change."""
    planner: Literal["global", "per-layer", "adapmoe"] = "global"
    """How a worker's places are split among layers. global: the most demanded experts of all. per-layer: as many in
    each layer, as in the eMoE paper. adapmoe: the split with the fewest expected loads, found exactly; it differs from
    global where routing is limited to groups of experts."""

    rules = (
        Rule(
            cel="!has(self.eviction) || self.missPolicy == 'load'",
            message="eviction is for missPolicy load: with reroute, plans alone say who stays; leave it out, "
            "or set missPolicy: load",
            holds=lambda experts: experts.eviction is None or experts.miss_policy == "load",
            field=".eviction",
        ),
    )

    @field_validator("pinned")
    @classmethod
    def _names_a_layer_once(cls, pinned: tuple[PinnedExperts, ...]) -> tuple[PinnedExperts, ...]:
        _refuse_duplicates([entry.layer for entry in pinned], "layer")
        return pinned


class TaskSlo(ApiModel):
    """Targets of one request; what is left out is no target."""

    ttft_seconds: float | None = Field(default=None, gt=0, le=3600)
    """To the first token."""
    tpot_seconds: float | None = Field(default=None, gt=0, le=60)
    """For each later token, on the mean of an answer."""
    end_to_end_seconds: float | None = Field(default=None, gt=0, le=86_400)
    """To the last token."""


class Task(ApiModel):
    """A class of requests: experts are predicted and requests are scheduled by it."""

    name: str = Field(max_length=63)
    """One of emoe's own (chat, classification, code, math, qa, summarization, translation), or a name of one's own."""
    slo: TaskSlo = TaskSlo()
    """What requests of this task are promised when they name no targets themselves."""
    examples: tuple[Example, ...] = Field(default=(), max_length=MAX_EXAMPLES)
    """Prompts that show what the task is. A request that names no task is of this one if its prompt is enough like an
    example; five do well. All tasks' together have at most 32 KiB."""

    rules = (
        Rule(
            cel=f"self.name.matches('{TASK_PATTERN}')",
            message="a task's name has small letters, digits, '-' and '_', with a letter first; write it like legal-qa",
            holds=lambda task: re.fullmatch(TASK_PATTERN, task.name, re.ASCII) is not None,
            field=".name",
        ),
        Rule(
            cel="self.name != 'unknown'",
            message="unknown is what requests without a task are called; give the task another name",
            holds=lambda task: task.name != "unknown",
            field=".name",
        ),
    )


class Scheduling(ApiModel):
    """In which order requests run, how many may wait, and whether tasks are identified."""

    policy: Literal["fifo", "shortest", "edf", "emoe", "ontime"] = "ontime"
    """fifo: first come, first served. shortest: the least work first. edf: the earliest deadline first. emoe: the
    strictest first, where it makes no running request late. ontime: as many as possible within their targets."""
    placement: Literal["most-free", "least-wait", "residency"] | None = None
    """Among workers that may take a request. most-free: the one with the most free sequences. least-wait: the soonest
    first token. residency: the best coverage of its task's experts among those in time. Left out: the policy's own."""
    max_queued_requests: int = Field(default=256, ge=1, le=65_536)
    """More are refused with RESOURCE_EXHAUSTED and a delay to retry after; of each scheduler."""
    identify_tasks: bool = True
    """Name the task of a request whose client named none, by its prompt; otherwise it is unknown."""


class FrontDoor(ApiModel):
    """The Service that clients call; it has the resource's name."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """As in any Service."""
    port: int = Field(default=8000, ge=1, le=65_535)
    """Its gRPC port."""
    annotations: AnnotationMap = Field(default={}, max_length=32)
    """For load balancers and meshes."""


class Rollout(ApiModel):
    """How workers and schedulers are replaced when the resource changes; schedulers always one more first."""

    max_surge: CountOrPercent | None = None
    """Of workers: pods beyond the wanted number. Left out: 1 on CPU, 0 on GPUs, where there may be no spare one."""
    max_unavailable: CountOrPercent | None = None
    """Of workers: pods that may be missing. Left out: 0 on CPU, 1 on GPUs."""
    drain_seconds: int = Field(default=60, ge=0, le=3600)
    """How long a worker or scheduler that is told to stop may finish its streams."""

    rules = (
        Rule(
            cel="!has(self.maxSurge) || !has(self.maxUnavailable) || !string(self.maxSurge).matches('^0+%?$') "
            "|| !string(self.maxUnavailable).matches('^0+%?$')",
            message="maxSurge and maxUnavailable are both 0, so that nothing could ever be replaced; raise one to 1",
            holds=lambda rollout: not (_is_zero(rollout.max_surge) and _is_zero(rollout.max_unavailable)),
        ),
    )


class Spec(ApiModel):
    """What is wanted of a served model. Only model is required."""

    model: Model
    """Which model is served. It cannot be changed: make a second resource, and move the clients over."""
    experts: Experts = Experts()
    """How much memory each worker gives to experts, and which of them stay in it."""
    tasks: tuple[Task, ...] = Field(
        default=(),
        max_length=64,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    """Classes of requests, beside emoe's own, and their targets."""
    scheduling: Scheduling = Scheduling()
    """In which order requests run, and how many may wait."""
    workers: Workers = Workers()
    """The pods that run the model."""
    services: Services = Services()
    """The pods round the workers: scheduler, loader and predictor."""
    cache: Cache | None = None
    """Where the loader keeps the model's files. Left out: in the loader's pod, fetched again when that is replaced."""
    tracing: Tracing | None = None
    """Where spans go. Left out: nowhere."""
    service: FrontDoor = FrontDoor()
    """The Service that clients call."""
    rollout: Rollout = Rollout()
    """How workers and schedulers are replaced when the resource changes; schedulers always one more first."""
    suspend: bool = False
    """Keep the resource, its claims and its learning, but run no pods."""

    rules = (
        Rule(
            cel="self.model == oldSelf.model",
            message="the model cannot be changed; make a second resource for the other one, and delete this one when "
            "its clients have moved",
            holds=None,
            field=".model",
        ),
    )

    @field_validator("tasks")
    @classmethod
    def _names_a_task_once(cls, tasks: tuple[Task, ...]) -> tuple[Task, ...]:
        _refuse_duplicates([task.name for task in tasks], "task")
        check_examples({task.name: task.examples for task in tasks if task.examples})
        return tasks
