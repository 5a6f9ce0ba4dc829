"""A child that somebody edits is put back; what somebody else adds to it is left alone."""

from __future__ import annotations

import json
from collections.abc import Iterator

import kube as k
import pytest

pytestmark = pytest.mark.cluster

PUT_BACK_SECONDS = 20.0
SOMEBODY = "--field-manager=somebody"


@pytest.fixture(scope="module")
def standing(kube: k.Kube) -> Iterator[k.Kube]:
    """A suspended resource: all of its children but the workers, and no pods to wait for."""
    kube.apply(k.demo("drift", suspend=True))
    for kind, name in (("deployment", "drift-scheduler"), ("service", "drift"), ("networkpolicy", "drift-loader")):
        k.wait_until(
            lambda kind=kind, name=name: kube.find(kind, name),  # type: ignore[misc]
            lambda child: child is not None,
            seconds=30,
            what=name,
        )
    return kube


def wait_back(kube: k.Kube, kind: str, name: str, path: tuple[str | int, ...], value: object) -> None:
    def look() -> object:
        found: object = kube.find(kind, name)
        for step in path:
            found = found[step] if found else None  # type: ignore[index]
        return found

    k.wait_until(look, lambda now: now == value, seconds=PUT_BACK_SECONDS, what=f"{name}'s {path} back at {value}")


def test_a_changed_image_is_put_back(standing: k.Kube) -> None:
    path = ("spec", "template", "spec", "containers", 0, "image")
    image = standing.get("deployment", "drift-scheduler")["spec"]["template"]["spec"]["containers"][0]["image"]
    standing.kubectl("set", "image", "deployment/drift-scheduler", "main=localhost:5000/else/where:1", SOMEBODY)
    wait_back(standing, "deployment", "drift-scheduler", path, image)


def test_a_changed_port_is_put_back(standing: k.Kube) -> None:
    """Ports are told apart by their number: what is applied over it is one more port, which the API refuses."""
    standing.apply(k.demo("ported", suspend=True))
    wait_back(standing, "service", "ported", ("spec", "ports", 0, "port"), 8000)
    change = [{"op": "replace", "path": "/spec/ports/0/port", "value": 1234}]
    standing.kubectl("patch", "service", "ported", "--type=json", f"--patch={json.dumps(change)}", SOMEBODY)
    wait_back(standing, "service", "ported", ("spec", "ports", 0, "port"), 8000)


def test_a_deleted_child_is_made_again(standing: k.Kube) -> None:
    uid = standing.get("service", "drift-loader")["metadata"]["uid"]
    standing.delete("service", "drift-loader")
    k.wait_until(
        lambda: standing.find("service", "drift-loader"),
        lambda service: service is not None and service["metadata"]["uid"] != uid,
        seconds=PUT_BACK_SECONDS,
        what="another Service",
    )


def test_one_more_door_in_a_network_policy_is_shut(standing: k.Kube) -> None:
    policy = standing.get("networkpolicy", "drift-loader")
    opened = [*policy["spec"].get("ingress", []), {}]
    standing.patch("networkpolicy", "drift-loader", {"spec": {"ingress": opened}}, options=(SOMEBODY,))
    wait_back(standing, "networkpolicy", "drift-loader", ("spec", "ingress"), policy["spec"].get("ingress"))


def test_what_another_manager_adds_stays_when_the_rest_is_put_back(standing: k.Kube) -> None:
    standing.kubectl("annotate", "service/drift", "somebody.example/note=mine", SOMEBODY)
    sidecar = {"name": "sidecar", "image": "localhost:5000/else/where:1"}
    patch = {"spec": {"template": {"spec": {"containers": [sidecar]}}}}
    standing.kubectl("patch", "deployment", "drift-predictor", f"--patch={json.dumps(patch)}", SOMEBODY)
    standing.kubectl("label", "service/drift", "app.kubernetes.io/part-of=else", "--overwrite", SOMEBODY)
    wait_back(standing, "service", "drift", ("metadata", "labels", "app.kubernetes.io/part-of"), "emoe")
    assert standing.get("service", "drift")["metadata"]["annotations"]["somebody.example/note"] == "mine"
    containers = standing.get("deployment", "drift-predictor")["spec"]["template"]["spec"]["containers"]
    assert {container["name"] for container in containers} == {"main", "sidecar"}


def test_what_was_there_before_under_a_childs_name_is_not_taken(standing: k.Kube) -> None:
    foreign = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "taken"},
        "spec": {"ports": [{"port": 80}], "selector": {"app": "else"}},
    }
    standing.apply(foreign)
    standing.apply(k.demo("taken", suspend=True))
    told = k.wait_until(
        lambda: standing.conditions("taken"),
        lambda conditions: any("taken" in one.get("message", "") for one in conditions.values()),
        seconds=30,
        what="a condition about the Service that is in the way",
    )
    assert told["Ready"]["status"] != "True"
    service = standing.get("service", "taken")
    assert service["spec"]["selector"] == {"app": "else"}
    assert "ownerReferences" not in service["metadata"]


def test_a_paused_resource_is_left_as_somebody_made_it(standing: k.Kube) -> None:
    standing.apply(k.demo("paused", suspend=True))
    k.wait_until(
        lambda: standing.find("service", "paused"), lambda child: child is not None, seconds=30, what="a Service"
    )
    standing.kubectl("annotate", "moed/paused", "emoe.dev/paused=true")
    standing.kubectl("label", "service/paused", "app.kubernetes.io/part-of=else", "--overwrite", SOMEBODY)
    standing.kubectl("annotate", "moed/drift", "somebody.example/poke=1")
    standing.delete("service", "drift-predictor")
    wait_back(standing, "service", "drift-predictor", ("metadata", "name"), "drift-predictor")
    assert standing.get("service", "paused")["metadata"]["labels"]["app.kubernetes.io/part-of"] == "else"
    standing.kubectl("annotate", "moed/paused", "emoe.dev/paused-")
    wait_back(standing, "service", "paused", ("metadata", "labels", "app.kubernetes.io/part-of"), "emoe")
