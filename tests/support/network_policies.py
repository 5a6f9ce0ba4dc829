"""Says whether a connection passes a set of NetworkPolicies, as networking.k8s.io/v1 defines them.

For tables of flows that must and must not pass. What a node sends to its own pods (a kubelet's probes) is let through
by every plugin and is not asked about here.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

NAMESPACE_NAME = "kubernetes.io/metadata.name"

Policy = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A pod, or with no namespace an address outside of the cluster. `ports` are a pod's named ones."""

    namespace: str | None = None
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    namespace_labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ports: Mapping[str, int] = dataclasses.field(default_factory=dict)
    address: str | None = None

    @property
    def all_namespace_labels(self) -> dict[str, str]:
        """With the one that the API server gives every namespace."""
        return {**self.namespace_labels, NAMESPACE_NAME: self.namespace or ""}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow:
    source: Endpoint
    destination: Endpoint
    port: int
    protocol: str = "TCP"


def passes(policies: Iterable[Policy], flow: Flow) -> bool:
    """Both ends have to allow it; an end that no policy selects allows everything."""
    policies = tuple(policies)
    return _allows(policies, flow, "Egress") and _allows(policies, flow, "Ingress")


def _allows(policies: Iterable[Policy], flow: Flow, direction: str) -> bool:
    held, other = (flow.source, flow.destination) if direction == "Egress" else (flow.destination, flow.source)
    binding = [policy for policy in policies if direction in _types(policy) and _selects(policy, held)]
    if not binding:
        return True
    rules_key, peers_key = ("egress", "to") if direction == "Egress" else ("ingress", "from")
    return any(
        _port_matches(rule.get("ports") or (), flow)
        and _peer_matches(rule.get(peers_key) or (), other, policy["metadata"]["namespace"])
        for policy in binding
        for rule in policy["spec"].get(rules_key) or ()
    )


def _types(policy: Policy) -> Iterable[str]:
    spec = policy["spec"]
    return spec.get("policyTypes") or (("Ingress", "Egress") if spec.get("egress") else ("Ingress",))


def _selects(policy: Policy, endpoint: Endpoint) -> bool:
    """A policy holds for pods of its own namespace alone; an empty selector takes all of them."""
    same_namespace = endpoint.namespace is not None and endpoint.namespace == policy["metadata"]["namespace"]
    return same_namespace and selector_matches(policy["spec"].get("podSelector") or {}, endpoint.labels)


def _peer_matches(peers: Iterable[Mapping[str, Any]], endpoint: Endpoint, policy_namespace: str) -> bool:
    """No peers: everybody."""
    peers = tuple(peers)
    return not peers or any(_is_peer(peer, endpoint, policy_namespace) for peer in peers)


def _is_peer(peer: Mapping[str, Any], endpoint: Endpoint, policy_namespace: str) -> bool:
    if "ipBlock" in peer:
        return endpoint.address is not None and _in_block(peer["ipBlock"], endpoint.address)
    if endpoint.namespace is None:
        return False
    if (namespaces := peer.get("namespaceSelector")) is None:
        in_namespace = endpoint.namespace == policy_namespace
    else:
        in_namespace = selector_matches(namespaces, endpoint.all_namespace_labels)
    return in_namespace and selector_matches(peer.get("podSelector") or {}, endpoint.labels)


def _in_block(block: Mapping[str, Any], address: str) -> bool:
    where = ipaddress.ip_address(address)
    excepted = any(where in ipaddress.ip_network(cidr) for cidr in block.get("except") or ())
    return where in ipaddress.ip_network(block["cidr"]) and not excepted


def _port_matches(ports: Iterable[Mapping[str, Any]], flow: Flow) -> bool:
    """No ports: every one. A named port is looked up in the pod that is called."""
    ports = tuple(ports)
    return not ports or any(_is_port(port, flow) for port in ports)


def _is_port(port: Mapping[str, Any], flow: Flow) -> bool:
    if port.get("protocol", "TCP") != flow.protocol:
        return False
    wanted = port.get("port")
    if wanted is None:
        return True
    if isinstance(wanted, str):
        return flow.destination.ports.get(wanted) == flow.port
    return bool(wanted <= flow.port <= port.get("endPort", wanted))


def selector_matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """A metav1.LabelSelector; an empty one takes everything."""
    wanted = selector.get("matchLabels") or {}
    return wanted.items() <= labels.items() and all(
        _expression_matches(expression, labels) for expression in selector.get("matchExpressions") or ()
    )


def _expression_matches(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values") or ()
    match expression["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return key not in labels or labels[key] not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
        case unknown:
            raise ValueError(f"no such operator in a label selector: {unknown}")
