"""A user's pod template over ours: what it says wins, what it leaves out stays."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from operator_cases import deployment, environment, main_container, plan, pod_spec

from emoe_operator.manifests.merge import merge_template


def with_template(spec: dict[str, Any], **metadata: Any) -> Any:
    return plan({"workers": {"podTemplate": {"spec": spec, "metadata": metadata}}})


def test_a_container_named_main_is_ours_with_the_users_fields_in_it() -> None:
    desired = with_template({"containers": [{"name": "main", "env": [{"name": "EMOE_WORKER_THREADS", "value": "4"}]}]})
    assert len(pod_spec(desired, "worker")["containers"]) == 1
    assert environment(desired, "worker")["EMOE_WORKER_THREADS"] == "4"
    assert "EMOE_WORKER_LOADER" in environment(desired, "worker")
    assert main_container(desired, "worker")["securityContext"]["readOnlyRootFilesystem"] is True


def test_a_variable_of_the_user_replaces_ours_whole() -> None:
    desired = with_template({"containers": [{"name": "main", "env": [{"name": "POD_IP", "value": "::1"}]}]})
    env = main_container(desired, "worker")["env"]
    assert [one for one in env if one["name"] == "POD_IP"] == [{"name": "POD_IP", "value": "::1"}]
    assert env[1]["name"] == "POD_IP"


def test_a_volume_of_the_user_replaces_ours_whole() -> None:
    desired = with_template({"volumes": [{"name": "state", "hostPath": {"path": "/nvme"}}]})
    states = [one for one in pod_spec(desired, "worker")["volumes"] if one["name"] == "state"]
    assert states == [{"name": "state", "hostPath": {"path": "/nvme"}}]


def test_other_containers_stand_beside_main() -> None:
    beside = {"containers": [{"name": "sidecar", "image": "x:1"}], "initContainers": [{"name": "first"}]}
    desired = with_template(beside)
    assert [one["name"] for one in pod_spec(desired, "worker")["containers"]] == ["main", "sidecar"]
    assert pod_spec(desired, "worker")["initContainers"] == [{"name": "first"}]


def test_security_defaults_go_only_when_they_are_overridden() -> None:
    desired = with_template({"securityContext": {"runAsUser": 0, "runAsNonRoot": None}})
    context = pod_spec(desired, "worker")["securityContext"]
    assert context["runAsUser"] == 0
    assert "runAsNonRoot" not in context
    assert context["fsGroup"] == 10001


def test_placement_is_passed_on() -> None:
    placed = {
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"podAffinity": {}},
    }
    assert placed.items() <= pod_spec(with_template(placed), "worker").items()


def test_labels_and_annotations_are_added_and_cannot_take_pods_from_their_selector() -> None:
    stolen = {"emoe.dev/moedeployment": "other", "app.kubernetes.io/component": "loader", "team": "search"}
    desired = with_template({}, labels=stolen, annotations={"a": "b"})
    template = deployment(desired, "worker")["spec"]["template"]["metadata"]
    assert template["labels"]["team"] == "search"
    assert template["labels"]["emoe.dev/moedeployment"] == "tiny"
    assert template["labels"]["app.kubernetes.io/component"] == "worker"
    assert template["annotations"] == {"a": "b"}


def test_a_template_of_one_service_changes_no_other() -> None:
    plain, changed = plan(), with_template({"priorityClassName": "high"})
    assert pod_spec(plain, "loader") == pod_spec(changed, "loader")


@pytest.mark.parametrize(
    ("ours", "theirs", "merged"),
    [
        pytest.param({"a": 1}, {"b": 2}, {"a": 1, "b": 2}, id="maps merge"),
        pytest.param({"a": {"b": 1}}, {"a": {"b": None}}, {"a": {}}, id="null removes"),
        pytest.param({"args": ["a"]}, {"args": ["b"]}, {"args": ["b"]}, id="plain lists are replaced"),
        pytest.param({}, {"a": {"b": None, "c": 1}}, {"a": {"c": 1}}, id="null in what is new is left out"),
        pytest.param(
            {"ports": [{"containerPort": 1, "protocol": "TCP"}]},
            {"ports": [{"containerPort": 1, "name": "x"}, {"containerPort": 1, "protocol": "UDP"}]},
            {"ports": [{"containerPort": 1, "name": "x"}, {"containerPort": 1, "protocol": "UDP"}]},
            id="a port is TCP unless it says otherwise",
        ),
        pytest.param(
            {"volumeMounts": [{"mountPath": "/a", "name": "x"}]},
            {"volumeMounts": [{"mountPath": "/a", "name": "y"}, {"mountPath": "/b", "name": "z"}]},
            {"volumeMounts": [{"mountPath": "/a", "name": "y"}, {"mountPath": "/b", "name": "z"}]},
            id="mounts merge by path",
        ),
    ],
)
def test_templates_merge_as_the_api_server_merges(ours: Any, theirs: Any, merged: Any) -> None:
    before = copy.deepcopy((ours, theirs))
    assert merge_template(ours, theirs) == merged
    assert (ours, theirs) == before


def test_a_list_of_something_else_than_objects_is_refused() -> None:
    desired = with_template({"containers": [{"name": "main", "env": ["A=b"]}]})
    assert [problem.reason for problem in desired.problems] == ["InvalidPodTemplate"]
    assert "env" in desired.problems[0].message
