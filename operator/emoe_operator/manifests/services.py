"""The Services: the front door that clients call, and the addresses of loader and predictor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from emoe.api.names import Component
from emoe_operator.desired import Manifest
from emoe_operator.manifests.context import Context
from emoe_operator.manifests.identity import BULK_PORT, GRPC_PORT, child_name, manifest, selector_labels

_BULK = {"name": "bulk", "port": BULK_PORT, "targetPort": "bulk", "protocol": "TCP"}


def services(context: Context) -> list[Manifest]:
    front, name = context.spec.service, context.resource.name
    return [
        # Found before it is ready: how far a model is fetched is asked of a loader that has none yet.
        _service(
            context,
            "loader",
            child_name(context.resource, "loader"),
            further_ports=(_BULK,),
            publishNotReadyAddresses=True,
        ),
        _service(context, "predictor", child_name(context.resource, "predictor")),
        _service(context, "scheduler", name, port=front.port, annotations=front.annotations, type=front.type),
    ]


def _service(
    context: Context,
    component: Component,
    name: str,
    *,
    port: int = GRPC_PORT,
    annotations: Mapping[str, str] | None = None,
    further_ports: Sequence[Mapping[str, Any]] = (),
    **spec: Any,
) -> Manifest:
    ports = [
        {"name": "grpc", "port": port, "targetPort": "grpc", "protocol": "TCP", "appProtocol": "kubernetes.io/h2c"},
        *further_ports,
    ]
    return manifest(
        context.resource,
        api_version="v1",
        kind="Service",
        name=name,
        component=component,
        annotations=annotations,
        spec={"type": "ClusterIP", **spec, "selector": selector_labels(context.resource, component), "ports": ports},
    )
