"""What the operator knows when it decides: the resource, what stands of it, and what its loader says.

The runtime half fills these in (indices of children and pods, the loader's streams) and hands them to
`plan.plan_children` and `status.build_status`, which are pure. Bodies of children are the API server's own dicts; all
else is parsed here once. Nothing in this module knows kopf, the Kubernetes client or protobuf.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
from collections.abc import Mapping
from typing import Any

from emoe.core.capacity import ModelGeometry, WorkerPlan
from emoe.core.errors import EmoeError
from emoe.core.experts import ExpertGrid

Body = Mapping[str, Any]
"""An object as the API server gives it."""
ChildKey = tuple[str, str]
"""(kind, name), such as ("Deployment", "tiny-worker")."""


class ModelPhase(enum.StrEnum):
    """`emoe.v1.ModelPhase` by its bare name."""

    RESOLVING = "Resolving"
    FETCHING = "Fetching"
    VERIFYING = "Verifying"
    READY = "Ready"
    FAILED = "Failed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFailure:
    """`reason` is CamelCase as the loader says it: NotFound, Unauthorized, Unreachable, Corrupt, Unsupported, ..."""

    reason: str
    message: str
    permanent: bool = False
    retry_seconds: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """All of a model that memory is planned from; kept in status, so that a restarted loader changes nothing."""

    digest: str
    family: str
    grid: ExpertGrid
    base_bytes: int
    kv_bytes_per_token: int
    max_context: int

    @property
    def shape(self) -> ModelGeometry:
        return ModelGeometry(
            grid=self.grid,
            base_bytes=self.base_bytes,
            kv_bytes_per_token=self.kv_bytes_per_token,
            max_context=self.max_context,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelView:
    """The last message of the loader's WatchModel."""

    phase: ModelPhase
    revision: str = ""
    num_bytes_done: int = 0
    num_bytes_total: int = 0
    bytes_per_second: float = 0.0
    failure: ModelFailure | None = None
    geometry: Geometry | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerView:
    """One worker of the loader's WatchWorkers; `name` is its id, which the plan sets to the pod's name."""

    name: str
    ready: bool
    num_resident: int
    num_slots: int
    """Those that plans may fill: without staging slots."""
    slot_bytes: int
    num_hits: int
    num_choices: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resource:
    """One MoEDeployment. `spec` and `status` are raw; `plan.parse_spec` says whether the spec can be served."""

    name: str
    namespace: str
    uid: str
    generation: int
    spec: Body
    status: Body = dataclasses.field(default_factory=dict)
    annotations: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def parse(cls, body: Body) -> Resource:
        meta = body["metadata"]
        return cls(
            name=meta["name"],
            namespace=meta["namespace"],
            uid=meta["uid"],
            generation=int(meta.get("generation", 1)),
            spec=body.get("spec") or {},
            status=body.get("status") or {},
            annotations=meta.get("annotations") or {},
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observed:
    """`pods` are bodies too, of this resource alone. No `model`: the loader does not answer (yet, or any more)."""

    now: datetime.datetime
    children: Mapping[ChildKey, Body] = dataclasses.field(default_factory=dict)
    pods: tuple[Body, ...] = ()
    model: ModelView | None = None
    workers: tuple[WorkerView, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """Why something cannot be: a CamelCase reason for a condition, and a message that says what to change."""

    reason: str
    message: str


class UnservableError(EmoeError):
    """What was asked for can be read, and cannot be served; `problem` becomes the condition SpecAccepted.

    `plan` is the memory plan that cannot be, for its figures."""

    def __init__(self, reason: str, message: str, *, plan: WorkerPlan | None = None) -> None:
        super().__init__(message)
        self.plan = plan
        self.problem = Problem(reason=reason, message=message)
