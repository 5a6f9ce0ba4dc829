"""What the plan decided: the children to apply, what to remove, and what stands in the way."""

from __future__ import annotations

import dataclasses
from typing import Any

from emoe.core.capacity import WorkerPlan
from emoe_operator.observed import ChildKey, Geometry, Problem

Manifest = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """What a resource's pods run; chosen when its spec changed, and kept when only the operator did."""

    control: str
    worker: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Desired:
    """`children` are in the order to apply them, `prune` in the order to remove.

    With `problems` nothing is applied or removed: what stands serves on, and SpecAccepted says why. `paused` is the
    same by the wish of whoever set the annotation.
    """

    images: Images | None = None
    children: tuple[Manifest, ...] = ()
    prune: tuple[ChildKey, ...] = ()
    problems: tuple[Problem, ...] = ()
    paused: bool = False
    suspended: bool = False
    geometry: Geometry | None = None
    worker_plan: WorkerPlan | None = None

    def child(self, kind: str, name: str) -> Manifest | None:
        return next((m for m in self.children if m["kind"] == kind and m["metadata"]["name"] == name), None)
