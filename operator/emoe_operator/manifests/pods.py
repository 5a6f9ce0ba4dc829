"""One pod template for all four services: probes, security and volumes that they share, and the user's template on top.

Nothing that changes by itself stands in a template (no time, no trace id): every change of it restarts pods.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from emoe.api.names import Component
from emoe_operator.manifests.context import Context
from emoe_operator.manifests.environment import Variable
from emoe_operator.manifests.identity import GRPC_PORT, HEALTH_PORT, labels, selector_labels
from emoe_operator.manifests.merge import merge_template
from emoe_operator.manifests.storage import Mounted

MAIN = "main"
USER_ID = 10001
PRE_STOP_SECONDS = 3
"""Between leaving the endpoints and SIGTERM: whoever still routes here learns of it meanwhile."""
GRACE_SECONDS = 15
"""Beyond the drain: preStop, the flush of traces, the end of the process."""
_STARTUP_PERIOD_SECONDS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Service:
    """What one of the services adds to the shared template."""

    component: Component
    image: str
    environment: list[Variable]
    resources: Mapping[str, Any]
    drain_seconds: int
    user_template: Mapping[str, Any]
    storage: Mounted = dataclasses.field(default_factory=Mounted)
    env_from: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    waits_before_stop: bool = False
    further_ports: tuple[tuple[str, int], ...] = ()
    """Names and numbers."""


def pod_template(context: Context, service: Service) -> dict[str, Any]:
    """UnservableError if the user's template is not one."""
    ours = {"metadata": {"labels": labels(context.resource, service.component)}, "spec": _pod_spec(context, service)}
    merged = merge_template(ours, service.user_template)
    # Selectors find pods by these two; whoever changes them would lose the pods.
    merged["metadata"]["labels"].update(selector_labels(context.resource, service.component))
    return merged


def _pod_spec(context: Context, service: Service) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "serviceAccountName": context.resource.name,
        "automountServiceAccountToken": False,
        # The environment is the services' settings, and they refuse variables that they do not know.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": service.drain_seconds + GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_main(context, service)],
        "volumes": [{"name": "tmp", "emptyDir": {}}, *service.storage.volumes],
    }
    if context.settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in context.settings.image_pull_secrets]
    return spec


def _main(context: Context, service: Service) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": MAIN,
        "image": service.image,
        "imagePullPolicy": context.settings.image_pull_policy,
        "command": ["emoe", "serve", service.component],
        "env": service.environment,
        "ports": [
            {"name": "grpc", "containerPort": GRPC_PORT, "protocol": "TCP"},
            {"name": "health", "containerPort": HEALTH_PORT, "protocol": "TCP"},
            *({"name": name, "containerPort": port, "protocol": "TCP"} for name, port in service.further_ports),
        ],
        **_probes(context),
        "resources": dict(service.resources),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # What a dying process said last is in the pod's status, and from there in the resource's conditions.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *service.storage.mounts],
    }
    if service.env_from:
        container["envFrom"] = service.env_from
    if service.waits_before_stop:
        container["lifecycle"] = {"preStop": {"sleep": {"seconds": PRE_STOP_SECONDS}}}
    return container


def _probes(context: Context) -> dict[str, Any]:
    lives = {"port": HEALTH_PORT, "service": "liveness"}
    return {
        "startupProbe": {
            "grpc": dict(lives),
            "periodSeconds": _STARTUP_PERIOD_SECONDS,
            "timeoutSeconds": 2,
            "failureThreshold": math.ceil(context.settings.start_seconds / _STARTUP_PERIOD_SECONDS),
        },
        "livenessProbe": {"grpc": dict(lives), "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
        "readinessProbe": {
            "grpc": {"port": HEALTH_PORT, "service": ""},
            "periodSeconds": 2,
            "timeoutSeconds": 2,
            "failureThreshold": 2,
        },
    }
