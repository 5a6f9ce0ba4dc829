"""How far a Deployment is: whether what runs is what was rendered last, in full and available.

A Deployment tells the truth about its newest revision only together with its observedGeneration, and only once what was
rendered is what stands; each of these is checked before a count is believed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from emoe_operator import drift
from emoe_operator.desired import Manifest
from emoe_operator.observed import Body


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout:
    """`newest`: what was rendered stands, and its controller has seen it. `failure`: why it cannot make pods."""

    newest: bool
    wanted: int
    total: int
    updated: int
    ready: int
    available: int
    failure: str = ""
    stalled: bool = False
    """Its controller has seen nothing move for as long as it may."""

    @property
    def complete(self) -> bool:
        """Every wanted pod is available and of the newest revision, and no other is left."""
        return self.newest and self.total == self.updated and self.updated >= self.wanted <= self.available


NOTHING = Rollout(newest=False, wanted=0, total=0, updated=0, ready=0, available=0)


def observe_rollout(standing: Body | None, rendered: Manifest | None) -> Rollout:
    """Without a rendering (the spec is refused) what stands is measured against itself."""
    if standing is None:
        return NOTHING
    status: Mapping[str, Any] = standing.get("status") or {}
    applied = rendered is None or drift.hash_on(standing) == drift.rendered_hash(rendered)
    seen = int(status.get("observedGeneration", 0)) >= int(standing["metadata"].get("generation", 1))
    return Rollout(
        newest=applied and seen,
        wanted=int(standing.get("spec", {}).get("replicas", 1)),
        total=int(status.get("replicas", 0)),
        updated=int(status.get("updatedReplicas", 0)),
        ready=int(status.get("readyReplicas", 0)),
        available=int(status.get("availableReplicas", 0)),
        failure=str(_condition(status, "ReplicaFailure", "True").get("message", "")),
        stalled=_condition(status, "Progressing", "False").get("reason") == "ProgressDeadlineExceeded",
    )


def _condition(status: Mapping[str, Any], kind: str, truth: str) -> Mapping[str, Any]:
    found = (one for one in status.get("conditions") or () if one["type"] == kind and one["status"] == truth)
    return next(found, {})
