"""The operator's pod: settings that it understands, least rights, no loose image, and what the chart's test may do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import values_sets
from support import charts

from emoe_operator import kinds
from emoe_operator.settings import OperatorSettings

SETS = pytest.mark.parametrize("values", [pytest.param(v, id=k) for k, v in values_sets.SETS.items()])
OPERATOR = "emoe-operator"
SMOKE = "smoke-emoe"
READ = {"list", "watch"}
WRITE = {"get", "create", "patch", "delete"}

Rights = set[tuple[str, str, str]]
"""Of (group, resource, verb)."""


def operator_container(values: dict[str, Any], *, crd: bool = False) -> dict[str, Any]:
    (deployment,) = charts.of_kind(charts.render(values, crd=crd), "Deployment")
    (container,) = charts.pod_of(deployment)["containers"]
    return container


def environment(container: dict[str, Any]) -> dict[str, str]:
    """With Kubernetes' own escape of a dollar undone; what comes from a ConfigMap by its name and key."""
    found = {}
    for entry in container["env"]:
        reference = entry.get("valueFrom", {}).get("configMapKeyRef")
        value = f"{reference['name']}/{reference['key']}" if reference else entry["value"]
        found[entry["name"]] = value.replace("$$(", "$(")
    return found


def settings_from(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> OperatorSettings:
    """As the operator's process would read them; an unknown variable would be a setting that silently is not set."""
    given = {k: v for k, v in environment(operator_container(values)).items() if k.startswith("EMOE_OPERATOR_")}
    known = {f"EMOE_OPERATOR_{field.upper()}" for field in OperatorSettings.model_fields}
    assert given.keys() <= known
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return OperatorSettings()


def test_the_operator_reads_its_defaults_from_the_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_from({}, monkeypatch)
    version = charts.distribution_version()
    assert settings.control_image == f"docker.io/emoe/control:{version}"
    assert settings.worker_image == f"docker.io/emoe/worker:{version}"
    assert settings.namespaces == ()
    assert settings.host_paths == ()
    assert settings.pod_env == {}
    assert settings.ca_bundle == ""
    assert settings.network_policies is True
    assert (settings.lease_name, settings.lease_namespace) == (OPERATOR, charts.NAMESPACE)
    assert settings.scheduler_resources == OperatorSettings.model_fields["scheduler_resources"].get_default(
        call_default_factory=True
    )


def test_the_operator_reads_everything_from_the_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_from(values_sets.EVERYTHING, monkeypatch)
    proxy = values_sets.EVERYTHING["workloads"]["proxy"]
    assert settings.control_image == f"docker.io/emoe/control@{values_sets.DIGEST}"
    assert settings.worker_image == "emoe/worker:1.2.3"
    assert settings.image_pull_policy == "Always"
    assert settings.image_pull_secrets == ("registry",)
    assert settings.host_paths == ("/mnt/models", "/var/lib/models")
    assert settings.pod_env["HTTPS_PROXY"] == settings.pod_env["https_proxy"] == proxy["https"]
    assert settings.pod_env["HF_ENDPOINT"] == "https://hub.example.com"
    assert settings.ca_bundle == "roots/roots.pem"
    assert settings.network_policies is False
    assert settings.loader_resources == {"limits": {"memory": "4Gi"}}
    assert (settings.log_format, settings.log_level) == ("text", "debug")


def test_the_operator_watches_the_namespaces_that_the_chart_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_from(values_sets.NAMESPACED, monkeypatch).namespaces == ("team-a", "team-b")


@SETS
def test_the_operators_labels_are_those_of_its_pods(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (deployment,) = charts.of_kind(charts.render(values), "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert settings_from(values, monkeypatch).operator_labels.items() <= labels.items()


def test_the_health_port_is_the_one_that_is_probed() -> None:
    container = operator_container({})
    (port,) = container["ports"]
    assert environment(container)["EMOE_OPERATOR_HEALTH_PORT"] == str(port["containerPort"])
    assert {container[probe]["httpGet"]["port"] for probe in _probes()} == {port["name"]}


def _probes() -> tuple[str, ...]:
    return ("startupProbe", "livenessProbe", "readinessProbe")


@SETS
def test_no_image_is_loose(values: dict[str, Any]) -> None:
    manifests = charts.render(values)
    images = {container["image"] for manifest in pods(manifests) for container in charts.pod_of(manifest)["containers"]}
    images |= {v for k, v in environment(operator_container(values)).items() if k.endswith("_IMAGE")}
    for image in images:
        tag = image.rsplit("/", 1)[1].partition(":")[2]
        assert tag
        assert tag != "latest"


def pods(manifests: Iterable[charts.Manifest]) -> list[charts.Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in {"Deployment", "Pod"}]


@SETS
def test_pods_run_with_nothing_that_they_do_not_need(values: dict[str, Any]) -> None:
    for manifest in pods(charts.render(values)):
        spec = charts.pod_of(manifest)
        (container,) = spec["containers"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"]
        assert container["resources"]["limits"]["memory"]
        assert spec["enableServiceLinks"] is False
        assert not any("hostPath" in volume for volume in spec["volumes"])


def test_two_replicas_may_not_be_drained_together() -> None:
    assert not charts.of_kind(charts.render({}), "PodDisruptionBudget")
    budget = charts.one(charts.render({"operator": {"replicas": 2}}), "PodDisruptionBudget", OPERATOR)
    assert budget["spec"]["maxUnavailable"] == 1


@SETS
def test_no_rule_has_a_wildcard_or_a_secret(values: dict[str, Any]) -> None:
    for _, rule in rules(charts.render(values)):
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert not any(resource.startswith("secrets") for resource in rule["resources"])
        assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])


def rules(manifests: Iterable[charts.Manifest]) -> list[tuple[str, dict[str, Any]]]:
    roles = [manifest for manifest in manifests if manifest["kind"] in {"Role", "ClusterRole"}]
    return [(role["metadata"]["name"], rule) for role in roles for rule in role["rules"]]


def rights(manifests: Iterable[charts.Manifest], role: str) -> Rights:
    return {
        (group, resource, verb)
        for name, rule in rules(manifests)
        if name == role
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def wanted_rights() -> Rights:
    """What the operator's own list of kinds makes it ask of the API server."""
    moed = (kinds.MOED.group, kinds.MOED.plural)
    wanted = {(kind.group, kind.plural, verb) for kind in kinds.WATCHED for verb in READ}
    wanted |= {(kind.group, kind.plural, verb) for kind in kinds.CHILDREN for verb in WRITE}
    wanted |= {(*moed, "get"), (moed[0], f"{moed[1]}/status", "patch"), (moed[0], f"{moed[1]}/finalizers", "update")}
    return wanted | {(kinds.EVENT.group, kinds.EVENT.plural, "create")}


@pytest.mark.parametrize(
    ("values", "role"),
    [
        pytest.param(values_sets.DEFAULTS, OPERATOR, id="cluster-wide"),
        pytest.param(values_sets.NAMESPACED, "moe-operator", id="namespaces"),
    ],
)
def test_the_operator_may_do_what_it_does_and_no_more(values: dict[str, Any], role: str) -> None:
    assert rights(charts.render(values), role) == wanted_rights()


def test_the_lease_is_the_only_one_that_the_operator_may_change() -> None:
    manifests = charts.render({})
    named = [rule for name, rule in rules(manifests) if name == f"{OPERATOR}-lease" and "resourceNames" in rule]
    assert [(rule["resourceNames"], rule["verbs"]) for rule in named] == [([OPERATOR], ["get", "update"])]
    assert rights(manifests, f"{OPERATOR}-lease") == {
        ("coordination.k8s.io", "leases", verb) for verb in ("get", "update", "create")
    }


def test_an_operator_of_namespaces_has_no_right_elsewhere() -> None:
    manifests = charts.render(values_sets.NAMESPACED)
    assert not [*charts.of_kind(manifests, "ClusterRole"), *charts.of_kind(manifests, "ClusterRoleBinding")]
    where = {
        m["metadata"]["namespace"] for m in charts.of_kind(manifests, "Role") if m["metadata"]["name"] == "moe-operator"
    }
    assert where == {"team-a", "team-b"}


@SETS
def test_rights_go_to_the_accounts_of_the_operator_and_of_the_test_alone(values: dict[str, Any]) -> None:
    manifests = charts.render(values)
    bindings = [m for m in manifests if m["kind"] in {"RoleBinding", "ClusterRoleBinding"}]
    subjects = {subject["name"] for binding in bindings for subject in binding["subjects"]}
    assert subjects == {charts.pod_of(manifest)["serviceAccountName"] for manifest in pods(manifests)}


@SETS
def test_accounts_hand_out_no_token_unasked(values: dict[str, Any]) -> None:
    for account in charts.of_kind(charts.render(values), "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_people_with_the_view_role_see_and_with_the_edit_role_change() -> None:
    manifests = charts.render({})
    view, edit = rights(manifests, "emoe-view"), rights(manifests, "emoe-edit")
    assert {verb for *_, verb in view} == {"get", "list", "watch"}
    assert ("emoe.dev", "moedeployments", "create") in edit
    assert ("emoe.dev", "moedeployments/scale", "patch") in edit
    assert not any(resource == "moedeployments/status" for _, resource, _ in edit)


@pytest.mark.parametrize(
    ("values", "namespace", "name"),
    [
        pytest.param(values_sets.DEFAULTS, charts.NAMESPACE, SMOKE, id="cluster-wide"),
        pytest.param(values_sets.NAMESPACED, "team-a", "smoke-moe", id="namespaces"),
    ],
)
def test_the_charts_test_may_touch_its_own_resource_alone(values: dict[str, Any], namespace: str, name: str) -> None:
    manifests = charts.render(values)
    role = charts.one(manifests, "Role", name)
    assert role["metadata"]["namespace"] == namespace
    assert [(rule.get("resourceNames"), rule["verbs"]) for rule in role["rules"]] == [
        ([name], ["get", "delete"]),
        (None, ["create"]),
    ]
    (container,) = charts.pod_of(charts.one(manifests, "Pod", name))["containers"]
    assert f"--namespace={namespace}" in container["args"]
    assert f"--name={name}" in container["args"]


@SETS
def test_the_charts_test_leaves_no_rights_behind(values: dict[str, Any]) -> None:
    for manifest in charts.render(values):
        if manifest["metadata"]["labels"].get("app.kubernetes.io/component") == "test" and manifest["kind"] != "Pod":
            assert "hook-succeeded" in manifest["metadata"]["annotations"]["helm.sh/hook-delete-policy"]


@pytest.mark.parametrize("release", ["emoe", "production", "a" * 53])
def test_the_tests_resource_has_a_name_that_is_allowed(release: str) -> None:
    (pod,) = charts.of_kind(charts.render({}, release=release), "Pod")
    assert len(pod["metadata"]["name"]) <= 40
    assert pod["metadata"]["name"].startswith("smoke-")
    assert not pod["metadata"]["name"].endswith("-")
