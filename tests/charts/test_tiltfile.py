"""The Tiltfile: every path, image, resource and port that it names exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support import charts
from support.tiltfile import Call, Recording, run_tiltfile

from emoe.api.resource import MoEDeployment

TILTFILE = charts.ROOT / "Tiltfile"
COMPONENTS = ("scheduler", "loader", "predictor")


@pytest.fixture(scope="module")
def recording() -> Recording:
    charts.require_helm()
    return run_tiltfile(TILTFILE)


def images(recording: Recording) -> dict[str, Call]:
    return {call["ref"]: call for call in recording.calls["docker_build"]}


def updates(build: Call, builtin: str) -> list[Call]:
    return [step for step in build["live_update"] if step["builtin"] == builtin]


def sample(recording: Recording) -> charts.Manifest:
    (found,) = charts.of_kind(recording.manifests, "MoEDeployment")
    return found


def operator(recording: Recording) -> charts.Manifest:
    (found,) = charts.of_kind(recording.manifests, "Deployment")
    return found


def image_name(reference: str) -> str:
    """Without what Tilt leaves out of account: the default registry and the tag."""
    return reference.removeprefix("docker.io/").split(":")[0]


def test_it_loads_no_extension() -> None:
    assert not re.search(r"^\s*(load|include|load_dynamic)\(|ext://", TILTFILE.read_text(), re.MULTILINE)


def test_all_three_images_are_built_for_somebody(recording: Recording) -> None:
    (container,) = charts.pod_of(operator(recording))["containers"]
    used = {image_name(container["image"])} | {main(template)["image"] for template in templates(recording).values()}
    assert set(images(recording)) == used
    assert len(used) == 3


def templates(recording: Recording) -> dict[str, Any]:
    spec = sample(recording)["spec"]
    found = {name: spec["services"][name]["podTemplate"] for name in COMPONENTS}
    return {**found, "worker": spec["workers"]["podTemplate"]}


def main(template: dict[str, Any]) -> dict[str, Any]:
    (container,) = template["spec"]["containers"]
    assert container["name"] == "main"
    found: dict[str, Any] = container
    return found


def test_dockerfiles_have_what_is_asked_of_them(recording: Recording) -> None:
    for build in recording.calls["docker_build"]:
        text = (charts.ROOT / build["dockerfile"]).read_text()
        assert (charts.ROOT / build["context"]).is_dir()
        assert re.search(rf"^FROM \S+ AS {build['target']}$", text, re.MULTILINE)
        for argument in build["build_args"]:
            assert re.search(rf"^ARG {argument}\b", text, re.MULTILINE)


def test_code_is_copied_from_where_it_is_to_where_the_image_has_it(recording: Recording) -> None:
    for build in recording.calls["docker_build"]:
        text = (charts.ROOT / build["dockerfile"]).read_text()
        (version,) = re.findall(r"^ARG BASE_IMAGE=python:(\d+\.\d+)-slim$", text, re.MULTILINE)
        packages = f"/opt/emoe/lib/python{version}/site-packages"
        for step in updates(build, "sync"):
            local = charts.ROOT / step["local_path"]
            assert (local / "__init__.py").is_file()
            assert step["remote_path"] == f"{packages}/{local.name}"


def test_every_path_that_decides_exists(recording: Recording) -> None:
    paths = [path for build in recording.calls["docker_build"] for path in _deciding_paths(build)]
    assert paths
    assert not [path for path in paths if not (charts.ROOT / path).exists()]


def _deciding_paths(build: Call) -> list[str]:
    rebuild = [path for step in updates(build, "fall_back_on") for path in step["files"]]
    return rebuild + [path for step in updates(build, "run") for path in step["trigger"]]


def test_what_would_change_the_image_beside_code_builds_it_anew(recording: Recording) -> None:
    for build in recording.calls["docker_build"]:
        first = build["live_update"][0]
        assert first["builtin"] == "fall_back_on"  # Tilt wants it first
        assert {"pyproject.toml", "uv.lock", build["dockerfile"]} <= set(first["files"])


def test_the_processes_that_are_told_to_end_are_supervised(recording: Recording) -> None:
    (container,) = charts.pod_of(operator(recording))["containers"]
    containers = {"operator": container, **{name: main(template) for name, template in templates(recording).items()}}
    for name, held in containers.items():
        command = ["emoe-operator"] if name == "operator" else ["emoe", "serve", name]
        assert held["command"][:2] == ["sh", "-c"]
        assert held["command"][-len(command) :] == command
        assert "/tmp/supervised.pid" in held["command"][2]
        assert held["securityContext"]["readOnlyRootFilesystem"] is False
    for build in recording.calls["docker_build"]:
        (step,) = updates(build, "run")
        assert step["cmd"] == "kill $(cat /tmp/supervised.pid)"


def test_the_operator_keeps_the_rest_of_its_security(recording: Recording) -> None:
    (container,) = charts.pod_of(operator(recording))["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_every_resource_that_is_configured_is_there(recording: Recording) -> None:
    workloads = {m["metadata"]["name"] for m in recording.manifests if m["kind"] in {"Deployment", "MoEDeployment"}}
    assert {call["workload"] for call in recording.calls["k8s_resource"]} == workloads
    known = workloads | {call["name"] for call in recording.calls["local_resource"]}
    calls = [*recording.calls["k8s_resource"], *recording.calls["local_resource"]]
    assert {name for call in calls for name in call.get("resource_deps", [])} <= known


def test_the_kind_that_is_configured_is_the_samples(recording: Recording) -> None:
    (kind,) = recording.calls["k8s_kind"]
    manifest = sample(recording)
    assert (kind["kind"], kind["api_version"]) == (manifest["kind"], manifest["apiVersion"])
    found = [lookup(manifest, path) for path in kind["image_json_path"]]
    assert sorted(found) == ["emoe/control"] * 3 + ["emoe/worker"]


def lookup(manifest: charts.Manifest, json_path: str) -> Any:
    at: Any = manifest
    for key in re.findall(r"[A-Za-z]+|\d+", json_path):
        at = at[int(key)] if key.isdigit() else at[key]
    return at


def test_the_sample_is_one_that_is_accepted(recording: Recording) -> None:
    assert MoEDeployment.parse(sample(recording)).spec.model.source == "demo://"


def test_everything_goes_to_one_namespace_which_is_made(recording: Recording) -> None:
    (namespace,) = charts.of_kind(recording.manifests, "Namespace")
    where = {m["metadata"]["namespace"] for m in recording.manifests if "namespace" in m["metadata"]}
    assert where == {namespace["metadata"]["name"]}


def test_the_charts_test_is_left_out(recording: Recording) -> None:
    assert not charts.of_kind(recording.manifests, "Pod")


def test_ports_that_are_forwarded_are_served(recording: Recording) -> None:
    (forwarding,) = [call for call in recording.calls["k8s_resource"] if call.get("port_forwards")]
    (container,) = charts.pod_of(operator(recording))["containers"]
    assert forwarding["workload"] == operator(recording)["metadata"]["name"]
    served = {str(port["containerPort"]) for port in container["ports"]}
    assert {ports.split(":")[1] for ports in forwarding["port_forwards"]} <= served


def test_the_front_door_is_the_samples(recording: Recording) -> None:
    (command,) = [call["serve_cmd"] for call in recording.calls["local_resource"] if "serve_cmd" in call]
    manifest = sample(recording)
    assert f"service/{manifest['metadata']['name']}" in command
    assert manifest["metadata"]["namespace"] in command
    port = MoEDeployment.parse(manifest).spec.service.port
    assert command[-1].endswith(f":{port}")


def test_a_command_that_is_run_here_is_one_of_ours(recording: Recording) -> None:
    (ask,) = [call["cmd"] for call in recording.calls["local_resource"] if "cmd" in call]
    assert Path(ask[0]).name == "emoe"
