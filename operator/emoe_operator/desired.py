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

    With `problems`, which SpecAccepted tells, they are those of the spec that was accepted last; none if there is no
    such, and then what stands is left. `paused`: nothing is applied or removed, by the wish of whoever set the
    annotation. `suspended`: no Deployment may want pods, also one that cannot be applied as it should be.
    """

    images: Images | None = None
    children: tuple[Manifest, ...] = ()
    prune: tuple[ChildKey, ...] = ()
    last_good: tuple[Manifest, ...] = ()
    """The children of the spec that was accepted before: each stands in for one that the API server refuses."""
    problems: tuple[Problem, ...] = ()
    paused: bool = False
    suspended: bool = False
    geometry: Geometry | None = None
    worker_plan: WorkerPlan | None = None

    def child(self, kind: str, name: str) -> Manifest | None:
        return next((m for m in self.children if m["kind"] == kind and m["metadata"]["name"] == name), None)
