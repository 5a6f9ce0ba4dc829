"""The examples beside the chart: each is accepted by what it is for, and names the others as they are called."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from support import charts

from emoe.api.resource import MoEDeployment
from emoe.v1 import worker_pb2

EXAMPLES: dict[str, dict[str, Any]] = {
    path.name: yaml.safe_load(path.read_text()) for path in sorted(charts.EXAMPLES.glob("*.yaml"))
}
MODELS = {name: example for name, example in EXAMPLES.items() if example["kind"] == "MoEDeployment"}
SCALERS = ("hpa.yaml", "keda.yaml")


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_says_first_what_has_to_be_there(name: str) -> None:
    comment, _, _ = (charts.EXAMPLES / name).read_text().partition("apiVersion:")
    assert re.search(r"^# Needs: \S", comment, re.MULTILINE)


@pytest.mark.parametrize("name", MODELS)
def test_models_are_accepted(name: str) -> None:
    assert MoEDeployment.parse(MODELS[name]).metadata.name == MODELS[name]["metadata"]["name"]


def test_the_hpa_is_what_kubernetes_takes() -> None:
    kubernetes_validate.validate(EXAMPLES["hpa.yaml"], "1.34", strict=True)


@pytest.mark.parametrize("name", SCALERS)
def test_scalers_scale_the_workers_of_an_example(name: str) -> None:
    target = EXAMPLES[name]["spec"]["scaleTargetRef"]
    assert identity(target["apiVersion"], target["kind"], target["name"]) in {
        identity(m["apiVersion"], m["kind"], m["metadata"]["name"]) for m in MODELS.values()
    }


def test_the_query_counts_the_requests_of_the_resource_that_it_scales() -> None:
    spec = EXAMPLES["keda.yaml"]["spec"]
    (trigger,) = spec["triggers"]
    labels = dict(re.findall(r'(\w+)="([^"]*)"', trigger["metadata"]["query"]))
    service = worker_pb2.DESCRIPTOR.services_by_name["WorkerService"]
    assert labels["emoe_moedeployment"] == spec["scaleTargetRef"]["name"]
    assert labels["span_name"] == f"{service.full_name}/{service.methods_by_name['Generate'].name}"


def identity(api_version: str, kind: str, name: str) -> tuple[str, str, str]:
    return api_version, kind, name


def test_the_route_leads_to_an_examples_front_door() -> None:
    (rule,) = EXAMPLES["grpcroute.yaml"]["spec"]["rules"]
    (backend,) = rule["backendRefs"]
    doors = {m["metadata"]["name"]: MoEDeployment.parse(m).spec.service.port for m in MODELS.values()}
    assert doors[backend["name"]] == backend["port"]


def test_the_route_lets_services_pass_that_exist() -> None:
    declared = {name for proto in (charts.ROOT / "protos").rglob("*.proto") for name in services_of(proto)}
    (rule,) = EXAMPLES["grpcroute.yaml"]["spec"]["rules"]
    named = {match["method"]["service"] for match in rule["matches"]}
    assert named - {"grpc.reflection.v1.ServerReflection"} <= declared


def services_of(proto: Path) -> list[str]:
    lines = [line.split() for line in proto.read_text().splitlines()]
    (package,) = [words[1].rstrip(";") for words in lines if words[:1] == ["package"]]
    return [f"{package}.{words[1]}" for words in lines if words[:1] == ["service"]]


def test_the_notes_show_the_first_example() -> None:
    notes = (charts.CHART / "templates" / "NOTES.txt").read_text()
    shown = notes.split("<<'YAML'\n")[1].split("\nYAML\n")[0]
    assert yaml.safe_load(shown) == EXAMPLES["demo.yaml"]
