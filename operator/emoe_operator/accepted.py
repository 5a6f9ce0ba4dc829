"""The spec that was accepted last: kept served, and its children corrected, while a newer one is refused.

It is remembered in `status.accepted`, as text. The children cannot be its memory: what somebody edits in them is what
would be forgotten. Revisions as objects of their own (Knative's, the ControllerRevisions of a StatefulSet) serve those
who run several at a time; here one is enough, and a status is written anyway, by nobody but the operator. Text, because
it is exact (a null in a pod template says something) and one field to server-side apply; Flink's operator keeps its
last spec the same way. Where it is lost, what stands is left alone until the next spec is accepted.

How many pods run is not part of what was accepted: `suspend` and the number of workers are those of the newest spec.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from emoe.api.status import AcceptedSpec
from emoe_operator.observed import Resource
from emoe_operator.recorded import recorded_status


def record_accepted(resource: Resource) -> AcceptedSpec:
    spec = json.dumps(resource.spec, default=dict, sort_keys=True, separators=(",", ":"))
    return AcceptedSpec(generation=resource.generation, spec=spec)


def recall_accepted(resource: Resource) -> Resource | None:
    """The resource as it was then, but for how many pods it asks for now. None if nothing is remembered."""
    accepted = recorded_status(resource).accepted
    if accepted is None:
        return None
    try:
        spec = json.loads(accepted.spec)
    except ValueError:
        return None
    if not isinstance(spec, dict):
        return None
    return dataclasses.replace(resource, spec=_with_numbers(spec, resource), generation=accepted.generation)


def wants_suspension(resource: Resource) -> bool:
    """Whatever else the spec says."""
    return resource.spec.get("suspend") is True


def _with_numbers(spec: dict[str, Any], newest: Resource) -> dict[str, Any]:
    numbered = {**spec, "suspend": wants_suspension(newest)}
    replicas = _section(newest.spec, "workers").get("replicas")
    if replicas is not None:
        numbered["workers"] = {**_section(spec, "workers"), "replicas": replicas}
    return numbered


def _section(spec: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = spec.get(name)
    return section if isinstance(section, Mapping) else {}
