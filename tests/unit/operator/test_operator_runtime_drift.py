"""What counts as a difference between a child as rendered and as it stands."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from emoe_operator import drift

RENDERED: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "tiny-worker", "labels": {"app": "emoe"}},
    "spec": {
        "replicas": 1,
        "selector": {"matchLabels": {"a": "b"}},
        "template": {
            "spec": {
                "automountServiceAccountToken": False,
                "containers": [
                    {
                        "name": "main",
                        "image": "worker:1",
                        "args": ["serve", "worker"],
                        "env": [{"name": "A", "value": "1"}, {"name": "EMPTY", "value": ""}],
                        "resources": {"requests": {"cpu": "1000m", "memory": "1024Mi"}},
                    }
                ],
                "volumes": [{"name": "tmp", "emptyDir": {}}],
            }
        },
    },
}


def standing() -> dict[str, Any]:
    """As the API server shows it: with defaults, quantities in its own form, empty values left out."""
    body = copy.deepcopy(drift.with_hash(RENDERED))
    body["metadata"] |= {"uid": "1", "resourceVersion": "7"}
    body["spec"]["strategy"] = {"type": "RollingUpdate"}
    main = body["spec"]["template"]["spec"]["containers"][0]
    main["terminationMessagePath"] = "/dev/termination-log"
    main["env"][1].pop("value")
    main["resources"]["requests"] = {"cpu": "1", "memory": "1Gi"}
    return body


def test_defaults_quantities_and_empty_values_are_no_difference() -> None:
    assert drift.matches(drift.with_hash(RENDERED), standing())


def test_what_others_add_is_no_difference() -> None:
    body = standing()
    body["metadata"]["labels"]["theirs"] = "yes"
    pod = body["spec"]["template"]["spec"]
    pod["containers"].insert(0, {"name": "sidecar", "image": "mesh:1"})
    pod["containers"][1]["env"].insert(0, {"name": "THEIRS", "value": "x"})
    assert drift.matches(RENDERED, body)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        pytest.param(("replicas",), 3, id="scalar"),
        pytest.param(("template", "spec", "automountServiceAccountToken"), True, id="false-to-true"),
        pytest.param(("template", "spec", "automountServiceAccountToken"), None, id="false-to-absent"),
        pytest.param(("template", "spec", "containers", 0, "args"), ["serve", "worker", "--evil"], id="list-of-words"),
        pytest.param(("template", "spec", "containers", 0, "env"), [{"name": "A", "value": "2"}], id="item"),
        pytest.param(("template", "spec", "containers"), [], id="no-items"),
        pytest.param(("template", "spec", "containers", 0, "resources", "requests", "cpu"), "2", id="quantity"),
        pytest.param(("template", "spec", "volumes", 0, "emptyDir"), {"medium": "Memory"}, id="empty-filled"),
    ],
)
def test_what_was_changed_is_a_difference(path: tuple[Any, ...], value: Any) -> None:
    body = standing()
    place = body["spec"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert not drift.matches(RENDERED, body)


def test_one_more_rule_in_a_network_policy_is_a_difference() -> None:
    rendered = {"spec": {"ingress": [{"ports": [{"port": 9000, "protocol": "TCP"}]}]}}
    opened = copy.deepcopy(rendered)
    opened["spec"]["ingress"][0]["ports"].append({"port": 22, "protocol": "TCP"})
    assert not drift.matches(rendered, opened)
    assert not drift.matches(rendered, {"spec": {"ingress": [*rendered["spec"]["ingress"], {}]}})


def test_the_hash_tells_of_a_field_that_is_no_longer_rendered() -> None:
    less = copy.deepcopy(RENDERED)
    del less["spec"]["template"]["spec"]["volumes"]
    assert drift.matches(less, standing())
    assert drift.hash_on(standing()) == drift.rendered_hash(RENDERED) != drift.rendered_hash(less)


def test_the_hash_does_not_depend_on_the_order_of_fields() -> None:
    turned = dict(reversed(list(RENDERED.items())))
    assert drift.rendered_hash(turned) == drift.rendered_hash(RENDERED)
