"""Who a child is: its name, its labels, its owner.

Selectors use two labels only, which never change; all other labels may.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from emoe.api.names import API_VERSION, COMPONENT_LABEL, GROUP, KIND, OWNER_LABEL, Component
from emoe.api.names import child_name as name_child
from emoe_operator.desired import Manifest
from emoe_operator.observed import Resource

SPEC_ANNOTATION = f"{GROUP}/spec"
"""On Deployments: digest of the spec they were made for, numbers of replicas left out."""
PAUSE_ANNOTATION = f"{GROUP}/paused"
"""On a MoEDeployment, `"true"`: nothing of it is changed until the annotation goes."""

GRPC_PORT = 9000
HEALTH_PORT = 9001
BULK_PORT = 9002
"""The loader's, where workers get experts by a plain socket: two above `listen`, unless it is told otherwise, and it is
not told. A loader of an older image, which a newer operator keeps, refuses settings that it does not know."""


def child_name(resource: Resource, component: Component) -> str:
    return name_child(resource.name, component)


def address(resource: Resource, component: Component) -> str:
    """host:port of a component's Service, from any pod of the cluster."""
    return f"{child_name(resource, component)}.{resource.namespace}.svc:{GRPC_PORT}"


def selector_labels(resource: Resource, component: Component) -> dict[str, str]:
    return {OWNER_LABEL: resource.name, COMPONENT_LABEL: component}


def labels(resource: Resource, component: Component | None) -> dict[str, str]:
    """Without a component: of what belongs to all of them."""
    shared = {
        "app.kubernetes.io/name": "emoe",
        "app.kubernetes.io/instance": resource.name,
        "app.kubernetes.io/part-of": "emoe",
        "app.kubernetes.io/managed-by": "emoe-operator",
        OWNER_LABEL: resource.name,
    }
    return shared if component is None else {**shared, COMPONENT_LABEL: component}


def owner_reference(resource: Resource) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": resource.name,
        "uid": resource.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def manifest(
    resource: Resource,
    *,
    api_version: str,
    kind: str,
    name: str,
    component: Component | None,
    owned: bool = True,
    annotations: Mapping[str, str] | None = None,
    **body: Any,
) -> Manifest:
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": resource.namespace,
        "labels": labels(resource, component),
    }
    if annotations:
        metadata["annotations"] = dict(annotations)
    if owned:
        metadata["ownerReferences"] = [owner_reference(resource)]
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **body}


def digest(value: Any) -> str:
    """The same for equal values, whatever the order of their keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
