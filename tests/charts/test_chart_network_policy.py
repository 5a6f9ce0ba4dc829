"""The operator's NetworkPolicy: a table of what must and what must not pass."""

from __future__ import annotations

from typing import Any

import pytest
from support import charts
from support.network_policies import Endpoint, Flow, passes

API_SERVER = Endpoint(address="172.16.0.2")
WORLD = Endpoint(address="203.0.113.9")
DNS = Endpoint(namespace="kube-system", labels={"k8s-app": "kube-dns"}, address="10.96.0.10")
PROMETHEUS = Endpoint(namespace="observability", labels={"app": "prometheus"}, address="10.1.0.9")
STRANGER = Endpoint(namespace="default", labels={"app": "web"}, ports={"http": 8080}, address="10.1.0.10")

METRICS_ON = {"metrics": {"enabled": True}}
METRICS_FOR_ONE = {
    **METRICS_ON,
    "networkPolicy": {
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "observability"}}}]
    },
}
TRACED = {"tracing": {"endpoint": "http://collector.observability:4317"}}
TWO_NAMESPACES = {"watch": {"namespaces": ["team-a", "team-b"]}}
OTHER_PORT = {"networkPolicy": {"apiServerPorts": [16443]}}


def child(component: str, namespace: str = "team-a") -> Endpoint:
    """A pod of a MoEDeployment."""
    labels = {"emoe.dev/moedeployment": "demo", "app.kubernetes.io/component": component}
    return Endpoint(namespace=namespace, labels=labels, ports={"grpc": 9000}, address="10.1.0.20")


def operator_of(values: dict[str, Any]) -> tuple[list[charts.Manifest], Endpoint]:
    manifests = charts.render(values)
    (deployment,) = charts.of_kind(manifests, "Deployment")
    template = deployment["spec"]["template"]
    ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
    labels = template["metadata"]["labels"]
    endpoint = Endpoint(namespace=deployment["metadata"]["namespace"], labels=labels, ports=ports, address="10.1.0.2")
    return charts.of_kind(manifests, "NetworkPolicy"), endpoint


@pytest.mark.parametrize(
    ("values", "destination", "port", "protocol", "expected"),
    [
        pytest.param({}, API_SERVER, 443, "TCP", True, id="api-service"),
        pytest.param({}, API_SERVER, 6443, "TCP", True, id="api-server"),
        pytest.param(OTHER_PORT, API_SERVER, 16443, "TCP", True, id="api-server-elsewhere"),
        pytest.param(OTHER_PORT, API_SERVER, 6443, "TCP", False, id="only-where-the-api-server-is"),
        pytest.param({}, DNS, 53, "UDP", True, id="dns"),
        pytest.param({}, DNS, 53, "TCP", True, id="dns-long-answers"),
        pytest.param({}, child("loader"), 9000, "TCP", True, id="loader"),
        pytest.param({}, child("loader"), 9001, "TCP", False, id="loader-health"),
        pytest.param({}, child("scheduler"), 9000, "TCP", False, id="scheduler"),
        pytest.param({}, child("worker"), 9000, "TCP", False, id="worker"),
        pytest.param({}, STRANGER, 9000, "TCP", False, id="some-pod"),
        pytest.param({}, WORLD, 80, "TCP", False, id="world"),
        pytest.param(TWO_NAMESPACES, child("loader", "team-b"), 9000, "TCP", True, id="loader-of-a-watched-namespace"),
        pytest.param(TWO_NAMESPACES, child("loader", "team-c"), 9000, "TCP", False, id="loader-of-another-namespace"),
        pytest.param({}, PROMETHEUS, 4317, "TCP", False, id="no-collector"),
        pytest.param(TRACED, PROMETHEUS, 4317, "TCP", True, id="collector"),
    ],
)
def test_whom_the_operator_may_call(
    values: dict[str, Any], destination: Endpoint, port: int, protocol: str, expected: bool
) -> None:
    policies, operator = operator_of(values)
    assert passes(policies, Flow(source=operator, destination=destination, port=port, protocol=protocol)) is expected


@pytest.mark.parametrize(
    ("values", "source", "port", "expected"),
    [
        pytest.param({}, PROMETHEUS, 8080, False, id="metrics-are-off"),
        pytest.param(METRICS_ON, PROMETHEUS, 8080, True, id="metrics-for-the-cluster"),
        pytest.param(METRICS_ON, PROMETHEUS, 8081, False, id="metrics-port-alone"),
        pytest.param(METRICS_ON, WORLD, 8080, False, id="metrics-not-for-the-world"),
        pytest.param(METRICS_FOR_ONE, PROMETHEUS, 8080, True, id="metrics-for-one-namespace"),
        pytest.param(METRICS_FOR_ONE, STRANGER, 8080, False, id="metrics-for-no-other"),
        pytest.param({}, child("worker"), 8080, False, id="worker"),
    ],
)
def test_who_may_call_the_operator(values: dict[str, Any], source: Endpoint, port: int, expected: bool) -> None:
    policies, operator = operator_of(values)
    assert passes(policies, Flow(source=source, destination=operator, port=port)) is expected


def test_the_policy_can_be_left_out() -> None:
    policies, operator = operator_of({"networkPolicy": {"enabled": False}})
    assert not policies
    assert passes(policies, Flow(source=operator, destination=WORLD, port=80))


def test_the_policy_does_not_hold_for_the_charts_test() -> None:
    manifests = charts.render({})
    (pod,) = charts.of_kind(manifests, "Pod")
    smoke = Endpoint(namespace=pod["metadata"]["namespace"], labels=pod["metadata"]["labels"])
    flow = Flow(source=smoke, destination=child("scheduler"), port=9000)
    assert passes(charts.of_kind(manifests, "NetworkPolicy"), flow)
