"""Who may call whom, a NetworkPolicy a service: what is not named here does not pass.

Clients call schedulers; schedulers call workers and the loader; workers call the loader and the predictor, and they
alone get experts at the loader's bulk port; the loader calls the predictor and, if it has a model to fetch, the world;
the operator watches the loader. All may resolve names and send spans. The kubelet's probes come from the node, which no
policy keeps out.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from emoe.api.names import Component
from emoe_operator.desired import Manifest
from emoe_operator.manifests.context import Context
from emoe_operator.manifests.identity import BULK_PORT, GRPC_PORT, child_name, manifest, selector_labels

Rule = dict[str, Any]

_CALLS: dict[Component, tuple[Component, ...]] = {
    "scheduler": ("loader", "worker"),
    "loader": ("predictor",),
    "predictor": (),
    "worker": ("loader", "predictor"),
}
_FETCHED_SCHEMES = frozenset({"hf", "s3", "http", "https"})
_DNS_PORT = 53


def network_policies(context: Context) -> list[Manifest]:
    if not context.settings.network_policies:
        return []
    return [_policy(context, component) for component in _CALLS]


def _policy(context: Context, component: Component) -> Manifest:
    resource = context.resource
    return manifest(
        resource,
        api_version="networking.k8s.io/v1",
        kind="NetworkPolicy",
        name=child_name(resource, component),
        component=component,
        spec={
            "podSelector": {"matchLabels": selector_labels(resource, component)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [_ingress(context, component), *([_bulk_ingress(context)] if component == "loader" else [])],
            "egress": _egress(context, component),
        },
    )


def _ingress(context: Context, component: Component) -> Rule:
    ports = [_tcp(GRPC_PORT)]
    if component == "scheduler":
        return {"ports": ports}
    callers = [_pods(context, caller) for caller, called in _CALLS.items() if component in called]
    if component == "loader":
        callers.append(_operator(context))
    return {"from": callers, "ports": ports}


def _bulk_ingress(context: Context) -> Rule:
    return {"from": [_pods(context, "worker")], "ports": [_tcp(BULK_PORT)]}


def _egress(context: Context, component: Component) -> list[Rule]:
    rules: list[Rule] = [{"ports": [{"protocol": "UDP", "port": _DNS_PORT}, _tcp(_DNS_PORT)]}]
    if called := _CALLS[component]:
        rules.append({"to": [_pods(context, one) for one in called], "ports": [_tcp(GRPC_PORT)]})
    if component == "worker":
        rules.append({"to": [_pods(context, "loader")], "ports": [_tcp(BULK_PORT)]})
    if context.spec.tracing:
        rules.append({"ports": [_tcp(_port(context.spec.tracing.endpoint))]})
    if component == "loader" and context.spec.model.parsed_source.scheme in _FETCHED_SCHEMES:
        # Which hosts and ports (hub, mirror, proxy, object store inside the cluster) only the secret may know.
        rules.append({"ports": [{"protocol": "TCP"}]})
    return rules


def _pods(context: Context, component: Component) -> dict[str, Any]:
    return {"podSelector": {"matchLabels": selector_labels(context.resource, component)}}


def _operator(context: Context) -> dict[str, Any]:
    settings = context.settings
    peer: dict[str, Any] = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.lease_namespace}}
    }
    if settings.operator_labels:
        peer["podSelector"] = {"matchLabels": dict(settings.operator_labels)}
    return peer


def _tcp(port: int) -> dict[str, Any]:
    return {"protocol": "TCP", "port": port}


def _port(endpoint: str) -> int:
    port = urlsplit(endpoint).port
    assert port is not None, "the resource's rules ask for a port"
    return port
