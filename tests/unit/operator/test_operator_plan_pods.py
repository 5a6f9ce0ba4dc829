"""What every pod has, whatever it serves, and what its service is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from operator_cases import COMPONENTS, deployment, environment, main_container, plan, pod_spec

every_component = pytest.mark.parametrize("component", COMPONENTS)
TASKS = [{"name": "code", "slo": {"ttftSeconds": 2, "tpotSeconds": 0.1}}, {"name": "tickets"}]


@every_component
def test_no_pod_has_a_token_root_or_capabilities(component: str) -> None:
    desired = plan()
    spec, container = pod_spec(desired, component), main_container(desired, component)
    assert spec["automountServiceAccountToken"] is False
    assert (spec["securityContext"]["runAsNonRoot"], spec["securityContext"]["runAsUser"]) == (True, 10001)
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]


@every_component
def test_the_kubelet_asks_the_health_port_for_life_and_readiness_apart(component: str) -> None:
    container = main_container(plan(), component)
    assert (
        container["startupProbe"]["grpc"] == container["livenessProbe"]["grpc"] == {"port": 9001, "service": "liveness"}
    )
    assert container["readinessProbe"]["grpc"] == {"port": 9001, "service": ""}


@every_component
def test_a_pods_environment_has_no_links_to_services_that_happen_to_stand(component: str) -> None:
    assert pod_spec(plan(), component)["enableServiceLinks"] is False


@every_component
def test_a_selector_finds_its_pods_and_uses_labels_that_never_change(component: str) -> None:
    spec = deployment(plan(), component)["spec"]
    labels = spec["selector"]["matchLabels"]
    assert labels == {"emoe.dev/moedeployment": "tiny", "app.kubernetes.io/component": component}
    assert labels.items() <= spec["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize(
    ("component", "waits"), [("scheduler", True), ("worker", True), ("loader", False), ("predictor", False)]
)
def test_pods_with_clients_streams_wait_before_they_stop_and_may_drain(component: str, waits: bool) -> None:
    desired = plan({"rollout": {"drainSeconds": 90}})
    hook = {"preStop": {"sleep": {"seconds": 3}}}
    assert main_container(desired, component).get("lifecycle") == (hook if waits else None)
    assert pod_spec(desired, component)["terminationGracePeriodSeconds"] == (105 if waits else 25)
    drain = environment(desired, component)[f"EMOE_{component.upper()}_DRAIN_SECONDS"]
    assert drain == ("90" if waits else "10")


@pytest.mark.parametrize(
    ("component", "strategy"),
    [
        ("loader", {"type": "Recreate"}),
        ("predictor", {"type": "Recreate"}),
        ("scheduler", {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}),
    ],
)
def test_what_there_may_be_one_of_is_recreated_and_the_front_door_never_missing(
    component: str, strategy: dict[str, Any]
) -> None:
    assert deployment(plan(), component)["spec"]["strategy"] == strategy


def test_workers_are_told_where_they_are_and_whom_to_ask() -> None:
    told = environment(plan(), "worker")
    assert told["EMOE_WORKER_ADVERTISE"] == "$(POD_IP):9000"
    assert told["EMOE_WORKER_WORKER_ID"] == "$(POD_NAME)"
    assert told["EMOE_WORKER_LOADER"] == "tiny-loader.apps.svc:9000"
    assert told["EMOE_WORKER_PREDICTOR"] == "tiny-predictor.apps.svc:9000"
    assert "EMOE_WORKER_MODEL" not in told


def test_variables_that_others_refer_to_come_before_them() -> None:
    names = [one["name"] for one in main_container(plan(), "worker")["env"]]
    assert names[:2] == ["POD_NAME", "POD_IP"]


def test_schedulers_are_told_tasks_and_their_targets_as_json() -> None:
    told = environment(plan({"tasks": TASKS, "scheduling": {"policy": "edf"}}), "scheduler")
    assert json.loads(told["EMOE_SCHEDULER_EXTRA_TASKS"]) == ["code", "tickets"]
    assert json.loads(told["EMOE_SCHEDULER_TASK_SLOS"]) == {"code": {"ttft_seconds": 2.0, "tpot_seconds": 0.1}}
    assert told["EMOE_SCHEDULER_POLICY"] == "edf"
    assert "EMOE_SCHEDULER_TASK_EXAMPLES" not in told


def test_schedulers_are_told_what_tasks_are_by_examples_as_they_were_written() -> None:
    tasks = [{"name": "tickets", "examples": ["Which team? The lift is stuck.", "Welches Team? Tür klemmt."]}]
    told = environment(plan({"tasks": tasks, "scheduling": {"identifyTasks": False}}), "scheduler")
    assert json.loads(told["EMOE_SCHEDULER_TASK_EXAMPLES"]) == {"tickets": tasks[0]["examples"]}
    assert told["EMOE_SCHEDULER_IDENTIFY_TASKS"] == "false"


def test_only_the_loader_sees_the_secret_and_the_operators_variables() -> None:
    spec = {"model": {"source": "hf://org/name", "secretRef": {"name": "hub-token"}}}
    desired = plan(spec, pod_env={"HF_ENDPOINT": "http://hub.local"})
    holders = [one for one in COMPONENTS if "hub-token" in json.dumps(pod_spec(desired, one))]
    told = [one for one in COMPONENTS if "HF_ENDPOINT" in environment(desired, one)]
    assert (holders, told) == (["loader"], ["loader"])
    assert main_container(desired, "loader")["envFrom"] == [{"secretRef": {"name": "hub-token"}}]


def test_a_dollar_in_a_users_text_names_no_other_variable() -> None:
    desired = plan({"model": {"source": "https://host/$(POD_IP)/"}})
    assert environment(desired, "loader")["EMOE_LOADER_SOURCE"] == "https://host/$$(POD_IP)/"


@every_component
def test_spans_go_nowhere_until_the_resource_says_where(component: str) -> None:
    silent = environment(plan(), component)
    traced = environment(plan({"tracing": {"endpoint": "http://otel:4317", "samplingRatio": 0.5}}), component)
    assert not [name for name in silent if name.startswith("OTEL")]
    assert traced["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://otel:4317"
    assert traced["OTEL_TRACES_SAMPLER_ARG"] == "0.5"


def test_suspended_deployments_have_no_pods_and_claims_and_services_stay() -> None:
    spec = {"services": {"predictor": {"storage": {"size": "1Gi"}}}, "workers": {"replicas": 3}}
    running, suspended = plan(spec), plan({**spec, "suspend": True})
    assert [deployment(suspended, one)["spec"]["replicas"] for one in COMPONENTS] == [0, 0, 0, 0]
    kept = {"Service", "PersistentVolumeClaim", "NetworkPolicy"}
    before, after = ([one for one in desired.children if one["kind"] in kept] for desired in (running, suspended))
    assert before == after


def test_pods_do_not_change_when_a_resource_is_suspended() -> None:
    running, suspended = plan(), plan({"suspend": True})
    for component in COMPONENTS:
        assert pod_spec(running, component) == pod_spec(suspended, component)


def test_certificates_reach_the_loader_under_a_name_that_follows_their_content() -> None:
    first, second = plan(ca_bundle="one"), plan(ca_bundle="two")
    volumes = [*pod_spec(first, "loader")["volumes"], *pod_spec(second, "loader")["volumes"]]
    names = [one["configMap"]["name"] for one in volumes if "configMap" in one]
    assert len(set(names)) == 2
    assert first.child("ConfigMap", names[0]) is not None
    assert environment(first, "loader")["SSL_CERT_FILE"] == "/etc/emoe/ca/ca.crt"


def test_pull_secrets_are_given_to_every_pod() -> None:
    desired = plan(image_pull_secrets=("registry",))
    assert all(pod_spec(desired, one)["imagePullSecrets"] == [{"name": "registry"}] for one in COMPONENTS)
