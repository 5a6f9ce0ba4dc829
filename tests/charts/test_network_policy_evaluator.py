"""The evaluator of NetworkPolicies itself, rule by rule of the API's definition."""

from __future__ import annotations

from typing import Any

import pytest
from support.network_policies import Endpoint, Flow, passes, selector_matches

WEB = Endpoint(namespace="shop", labels={"app": "web"}, ports={"http": 8080}, address="10.1.0.5")
DATABASE = Endpoint(namespace="shop", labels={"app": "db"}, ports={"sql": 5432}, address="10.1.0.6")
STRANGER = Endpoint(namespace="other", labels={"app": "web"}, namespace_labels={"team": "x"}, address="10.1.0.7")
WORLD = Endpoint(address="203.0.113.9")


def policy(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "shop"}, "spec": {"podSelector": {"matchLabels": {"app": "db"}}, **spec}}


def to_database(source: Endpoint, port: int = 5432, protocol: str = "TCP") -> Flow:
    return Flow(source=source, destination=DATABASE, port=port, protocol=protocol)


def from_database(destination: Endpoint, port: int = 443) -> Flow:
    return Flow(source=DATABASE, destination=destination, port=port)


def test_without_policies_everything_passes() -> None:
    assert passes([], to_database(WORLD))


def test_a_policy_without_rules_shuts_its_pods_off() -> None:
    assert not passes([policy(policyTypes=["Ingress"])], to_database(WEB))


def test_a_policy_leaves_pods_alone_that_it_does_not_select() -> None:
    assert passes([policy()], Flow(source=DATABASE, destination=WEB, port=8080))


def test_ingress_rules_alone_do_not_hold_for_egress() -> None:
    assert passes([policy(ingress=[])], from_database(WORLD))


def test_egress_rules_hold_for_both_directions_when_types_are_left_out() -> None:
    policies = [policy(egress=[{"ports": [{"port": 53}]}])]
    assert not passes(policies, from_database(WORLD))
    assert not passes(policies, to_database(WEB))


def test_rules_of_several_policies_add_up() -> None:
    none, some = policy(ingress=[]), policy(ingress=[{"from": [{"podSelector": {}}]}])
    assert passes([none, some], to_database(WEB))


@pytest.mark.parametrize(
    ("peer", "source", "expected"),
    [
        pytest.param({"podSelector": {"matchLabels": {"app": "web"}}}, WEB, True, id="pod-of-this-namespace"),
        pytest.param({"podSelector": {"matchLabels": {"app": "web"}}}, STRANGER, False, id="pod-of-another"),
        pytest.param({"namespaceSelector": {}}, STRANGER, True, id="any-namespace"),
        pytest.param({"namespaceSelector": {}}, WORLD, False, id="any-namespace-is-not-the-world"),
        pytest.param({"namespaceSelector": {"matchLabels": {"team": "x"}}}, STRANGER, True, id="namespace-by-label"),
        pytest.param(
            {"namespaceSelector": {"matchLabels": {"team": "x"}}, "podSelector": {"matchLabels": {"app": "db"}}},
            STRANGER,
            False,
            id="both-selectors-have-to-match",
        ),
        pytest.param({"ipBlock": {"cidr": "203.0.113.0/24"}}, WORLD, True, id="in-the-block"),
        pytest.param(
            {"ipBlock": {"cidr": "203.0.113.0/24", "except": ["203.0.113.8/30"]}}, WORLD, False, id="excepted"
        ),
    ],
)
def test_peers(peer: dict[str, Any], source: Endpoint, expected: bool) -> None:
    assert passes([policy(ingress=[{"from": [peer]}])], to_database(source)) is expected


@pytest.mark.parametrize(
    ("ports", "port", "protocol", "expected"),
    [
        pytest.param([], 1, "UDP", True, id="no-ports-are-all-ports"),
        pytest.param([{"port": 5432}], 5432, "TCP", True, id="number"),
        pytest.param([{"port": 5432}], 5432, "UDP", False, id="tcp-unless-said"),
        pytest.param([{"port": "sql"}], 5432, "TCP", True, id="name-in-the-called-pod"),
        pytest.param([{"port": "http"}], 5432, "TCP", False, id="a-name-that-the-pod-has-not"),
        pytest.param([{"port": 5000, "endPort": 6000}], 5432, "TCP", True, id="range"),
        pytest.param([{"protocol": "UDP"}], 9, "UDP", True, id="protocol-alone"),
    ],
)
def test_ports(ports: list[dict[str, Any]], port: int, protocol: str, expected: bool) -> None:
    assert passes([policy(ingress=[{"ports": ports}])], to_database(WEB, port, protocol)) is expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        pytest.param({"key": "app", "operator": "In", "values": ["web"]}, True, id="in"),
        pytest.param({"key": "app", "operator": "NotIn", "values": ["web"]}, False, id="not-in"),
        pytest.param({"key": "tier", "operator": "NotIn", "values": ["web"]}, True, id="not-in-without-the-label"),
        pytest.param({"key": "app", "operator": "Exists"}, True, id="exists"),
        pytest.param({"key": "app", "operator": "DoesNotExist"}, False, id="does-not-exist"),
    ],
)
def test_expressions(expression: dict[str, Any], expected: bool) -> None:
    assert selector_matches({"matchExpressions": [expression]}, {"app": "web"}) is expected
