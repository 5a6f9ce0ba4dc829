"""Environment variables of the pods: what services read as `EMOE_<SERVICE>_<FIELD>`."""

from __future__ import annotations

import json
from typing import Any

from emoe.api.names import Component
from emoe_operator.manifests.context import Context
from emoe_operator.manifests.identity import GRPC_PORT, HEALTH_PORT

Variable = dict[str, Any]


def variable(name: str, value: object) -> Variable:
    """Dollars are doubled, so that no text of a user is taken for a reference to another variable."""
    return {"name": name, "value": str(value).replace("$", "$$")}


def reference(name: str, value: str) -> Variable:
    """`value` may name variables before it, as $(POD_IP)."""
    return {"name": name, "value": value}


def _field(name: str, path: str) -> Variable:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def shared_environment(context: Context, component: Component, *, drain_seconds: int) -> list[Variable]:
    """What all four services have in common. The first two come first, because others refer to them."""
    prefix = f"EMOE_{component.upper()}"
    return [
        _field("POD_NAME", "metadata.name"),
        _field("POD_IP", "status.podIP"),
        variable("HOME", "/tmp"),
        variable(f"{prefix}_LISTEN", f"0.0.0.0:{GRPC_PORT}"),
        variable(f"{prefix}_HEALTH_LISTEN", f"0.0.0.0:{HEALTH_PORT}"),
        variable(f"{prefix}_LOG_FORMAT", "json"),
        variable(f"{prefix}_DRAIN_SECONDS", drain_seconds),
        *_tracing(context),
    ]


def _tracing(context: Context) -> list[Variable]:
    tracing, resource = context.spec.tracing, context.resource
    if tracing is None:
        return []
    attributes = f"k8s.namespace.name={resource.namespace},k8s.pod.name=$(POD_NAME),emoe.moedeployment={resource.name}"
    return [
        variable("OTEL_EXPORTER_OTLP_ENDPOINT", tracing.endpoint),
        variable("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        variable("OTEL_TRACES_SAMPLER_ARG", tracing.sampling_ratio),
        reference("OTEL_RESOURCE_ATTRIBUTES", attributes),
    ]


def to_json(value: Any) -> str:
    """One text for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
