"""The table of flows: what must pass through the rendered NetworkPolicies, and what must not."""

from __future__ import annotations

from typing import Any

import pytest
from operator_cases import plan
from support.network_policies import Endpoint, Flow, passes

HUB = {"model": {"source": "hf://org/name"}, "tracing": {"endpoint": "http://otel.monitoring:4317"}}


def pod(component: str, *, name: str = "tiny", namespace: str = "apps") -> Endpoint:
    labels = {"emoe.dev/moedeployment": name, "app.kubernetes.io/component": component}
    return Endpoint(namespace=namespace, labels=labels, ports={"grpc": 9000, "health": 9001, "bulk": 9002})


SCHEDULER, LOADER, PREDICTOR, WORKER = (pod(one) for one in ("scheduler", "loader", "predictor", "worker"))
CLIENT = Endpoint(namespace="web", labels={"app": "chat"})
NEIGHBOUR = Endpoint(namespace="apps", labels={"app": "chat"})
OPERATOR = Endpoint(namespace="emoe-system", labels={"app": "emoe-operator"})
OTHERS_WORKER = pod("worker", name="other")
OTHERS_SCHEDULER = pod("scheduler", name="other")
WORLD = Endpoint(address="203.0.113.7")
DNS = Endpoint(namespace="kube-system", labels={"k8s-app": "kube-dns"})
COLLECTOR = Endpoint(namespace="monitoring", labels={"app": "otel"})

MUST_PASS = {
    "client to scheduler": (CLIENT, SCHEDULER, 9000),
    "world to scheduler": (WORLD, SCHEDULER, 9000),
    "scheduler to worker": (SCHEDULER, WORKER, 9000),
    "scheduler to loader": (SCHEDULER, LOADER, 9000),
    "worker to loader": (WORKER, LOADER, 9000),
    "worker to the loader's bulk port": (WORKER, LOADER, 9002),
    "worker to predictor": (WORKER, PREDICTOR, 9000),
    "loader to predictor": (LOADER, PREDICTOR, 9000),
    "loader to the hub": (LOADER, WORLD, 443),
    "loader to a store in the cluster": (LOADER, Endpoint(namespace="minio", labels={}), 9000),
    "operator to loader": (OPERATOR, LOADER, 9000),
    "worker to the collector": (WORKER, COLLECTOR, 4317),
}
MUST_NOT_PASS = {
    "client to worker": (CLIENT, WORKER, 9000),
    "client to loader": (CLIENT, LOADER, 9000),
    "neighbour to predictor": (NEIGHBOUR, PREDICTOR, 9000),
    "neighbour to loader": (NEIGHBOUR, LOADER, 9000),
    "client to the scheduler's health": (CLIENT, SCHEDULER, 9001),
    "loader to worker": (LOADER, WORKER, 9000),
    "loader to scheduler's health": (LOADER, SCHEDULER, 9001),
    "scheduler to predictor": (SCHEDULER, PREDICTOR, 9000),
    "predictor to loader": (PREDICTOR, LOADER, 9000),
    "operator to worker": (OPERATOR, WORKER, 9000),
    "another's worker to loader": (OTHERS_WORKER, LOADER, 9000),
    "another's worker to the loader's bulk port": (OTHERS_WORKER, LOADER, 9002),
    "scheduler to the loader's bulk port": (SCHEDULER, LOADER, 9002),
    "operator to the loader's bulk port": (OPERATOR, LOADER, 9002),
    "worker to a predictor's port of that number": (WORKER, PREDICTOR, 9002),
    "another's scheduler to worker": (OTHERS_SCHEDULER, WORKER, 9000),
    "worker to the world": (WORKER, WORLD, 443),
    "scheduler to the world": (SCHEDULER, WORLD, 443),
    "predictor to the world": (PREDICTOR, WORLD, 443),
    "same names in another namespace": (pod("worker", namespace="evil"), LOADER, 9000),
}


def policies(spec: dict[str, Any], **fields: Any) -> list[Any]:
    return [one for one in plan(spec, **fields).children if one["kind"] == "NetworkPolicy"]


@pytest.mark.parametrize(("source", "destination", "port"), MUST_PASS.values(), ids=MUST_PASS.keys())
def test_what_serving_needs_passes(source: Endpoint, destination: Endpoint, port: int) -> None:
    assert passes(policies(HUB), Flow(source=source, destination=destination, port=port))


@pytest.mark.parametrize(("source", "destination", "port"), MUST_NOT_PASS.values(), ids=MUST_NOT_PASS.keys())
def test_what_nobody_needs_does_not_pass(source: Endpoint, destination: Endpoint, port: int) -> None:
    assert not passes(policies(HUB), Flow(source=source, destination=destination, port=port))


@pytest.mark.parametrize("source", [SCHEDULER, LOADER, PREDICTOR, WORKER])
@pytest.mark.parametrize("protocol", ["UDP", "TCP"])
def test_all_may_resolve_names(source: Endpoint, protocol: str) -> None:
    assert passes(policies(HUB), Flow(source=source, destination=DNS, port=53, protocol=protocol))


@pytest.mark.parametrize("source", ["demo://", "pvc://models/olmoe"])
def test_a_loader_that_has_nothing_to_fetch_reaches_nobody(source: str) -> None:
    flow = Flow(source=LOADER, destination=WORLD, port=443)
    assert not passes(policies({"model": {"source": source}}), flow)


def test_of_the_operators_namespace_only_its_own_pods_may_call_when_they_are_known() -> None:
    known = policies(HUB, operator_labels={"app": "emoe-operator"})
    other = Endpoint(namespace="emoe-system", labels={"app": "else"})
    assert passes(known, Flow(source=OPERATOR, destination=LOADER, port=9000))
    assert not passes(known, Flow(source=other, destination=LOADER, port=9000))


def test_no_policies_are_made_when_the_operator_is_told_so() -> None:
    assert policies(HUB, network_policies=False) == []
