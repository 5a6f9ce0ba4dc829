"""Deployments, and the budgets that keep a node's drain from taking all pods of a service at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emoe.api.names import Component
from emoe_operator.desired import Manifest
from emoe_operator.manifests.context import Context
from emoe_operator.manifests.identity import (
    SPEC_ANNOTATION,
    child_name,
    digest,
    manifest,
    selector_labels,
)
from emoe_operator.observed import Body

NOT_A_REVISION = frozenset({"replicas", "suspend"})
"""Spec fields, at whatever depth of ours, that change how many pods run and not what they run."""

RECREATE: dict[str, Any] = {"type": "Recreate"}


def spec_digest(spec: Body) -> str:
    """The same for two specs that differ in numbers of replicas alone: an HPA is no reason to take up new images."""
    return digest(_without_replicas(spec))


def _without_replicas(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    kept = {key: item for key, item in value.items() if key not in NOT_A_REVISION}
    return {key: item if key == "podTemplate" else _without_replicas(item) for key, item in kept.items()}


def rolling(*, max_surge: int | str, max_unavailable: int | str) -> dict[str, Any]:
    return {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": max_surge, "maxUnavailable": max_unavailable}}


def deployment(
    context: Context, component: Component, *, replicas: int, strategy: dict[str, Any], template: dict[str, Any]
) -> Manifest:
    """At no replicas while the resource is suspended."""
    resource = context.resource
    spec = {
        "selector": {"matchLabels": selector_labels(resource, component)},
        "strategy": strategy,
        "revisionHistoryLimit": 3,
        "progressDeadlineSeconds": context.settings.progress_deadline_seconds,
        "template": template,
    }
    return manifest(
        resource,
        api_version="apps/v1",
        kind="Deployment",
        name=child_name(resource, component),
        component=component,
        annotations={SPEC_ANNOTATION: spec_digest(resource.spec)},
        spec={"replicas": 0 if context.spec.suspend else replicas, **spec},
    )


def disruption_budget(context: Context, component: Component, *, replicas: int) -> list[Manifest]:
    """None for a single pod: it would only forbid what must be possible."""
    if replicas < 2 or context.spec.suspend:
        return []
    resource = context.resource
    return [
        manifest(
            resource,
            api_version="policy/v1",
            kind="PodDisruptionBudget",
            name=child_name(resource, component),
            component=component,
            spec={
                "maxUnavailable": 1,
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": {"matchLabels": selector_labels(resource, component)},
            },
        )
    ]
