"""values.yaml and its schema: nothing undescribed, nothing without an effect, and wrong values refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import values_sets
import yaml
from support import charts

VALUES: dict[str, Any] = yaml.safe_load((charts.CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((charts.CHART / "values.schema.json").read_text())

Path = tuple[str, ...]

OTHER_VALUES: dict[Path, Any] = {
    ("nameOverride",): "other",
    ("fullnameOverride",): "other",
    ("commonLabels",): {"team": "other"},
    ("crds", "install"): True,
    ("image", "pullPolicy"): "Never",
    ("image", "pullSecrets"): ["other"],
    **{
        ("image", image, field): value
        for image in ("operator", "control", "worker")
        for field, value in (
            ("registry", "other.example.com"),
            ("repository", "other/name"),
            ("tag", "9.9.9"),
            ("digest", "sha256:" + "f" * 64),
        )
    },
    ("watch", "namespaces"): ["other"],
    ("operator", "replicas"): 1,
    ("operator", "logFormat"): "json",
    ("operator", "logLevel"): "error",
    ("operator", "resources"): {"limits": {"memory": "1Gi"}},
    ("operator", "serviceAccount", "create"): False,
    ("operator", "serviceAccount", "name"): "other",
    ("operator", "serviceAccount", "annotations"): {"example.com/other": "x"},
    ("operator", "podAnnotations"): {"example.com/other": "x"},
    ("operator", "podLabels"): {"other": "x"},
    ("operator", "nodeSelector"): {"other": "x"},
    ("operator", "tolerations"): [{"key": "other", "operator": "Exists"}],
    ("operator", "affinity"): {"podAffinity": {}},
    ("operator", "topologySpreadConstraints"): [{"maxSkew": 2}],
    ("operator", "priorityClassName"): "other",
    ("operator", "extraEnv"): [{"name": "OTHER", "value": "x"}],
    ("rbac", "create"): False,
    ("rbac", "aggregate"): False,
    ("workloads", "proxy", "http"): "http://other.example.com",
    ("workloads", "proxy", "https"): "http://other.example.com",
    ("workloads", "proxy", "noProxy"): "other.example.com",
    ("workloads", "caBundle", "configMap"): "other",
    ("workloads", "caBundle", "key"): "other.pem",
    ("workloads", "hfEndpoint"): "https://other.example.com",
    ("workloads", "hostPaths"): ["/other"],
    ("workloads", "networkPolicies"): True,
    ("workloads", "resources", "scheduler"): {"requests": {"cpu": "7"}},
    ("workloads", "resources", "loader"): {"requests": {"cpu": "7"}},
    ("workloads", "resources", "predictor"): {"requests": {"cpu": "7"}},
    ("networkPolicy", "enabled"): False,
    ("networkPolicy", "apiServerPorts"): [16443],
    ("networkPolicy", "metricsFrom"): [],
    ("networkPolicy", "extraEgress"): [{"ports": [{"port": 7}]}],
    ("metrics", "enabled"): False,
    ("metrics", "port"): 7777,
    ("metrics", "serviceMonitor", "enabled"): False,
    ("metrics", "serviceMonitor", "interval"): "7s",
    ("metrics", "serviceMonitor", "labels"): {"other": "x"},
    ("tracing", "endpoint"): "http://other:4318",
    ("tests", "timeoutSeconds"): 77,
}
"""For each value, one that differs from the set that turns everything on."""


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    """Its reference followed; what stands beside the reference wins."""
    if "$ref" not in schema:
        return schema
    return {**SCHEMA["definitions"][schema["$ref"].rsplit("/", 1)[1]], **schema}


def described(schema: dict[str, Any], at: Path = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every value that the schema knows, groups too, with its part of the schema; Kubernetes' own types as a whole."""
    for key, value in schema["properties"].items():
        yield (*at, key), resolve(value)
        if value.get("$ref") != "#/definitions/resources":
            yield from described(resolve(value), (*at, key)) if "properties" in resolve(value) else ()


def is_group(schema: dict[str, Any]) -> bool:
    return "properties" in schema and "requests" not in schema["properties"]


DESCRIBED = {path: schema for path, schema in described(SCHEMA) if path != ("global",)}
LEAVES = sorted(path for path, schema in DESCRIBED.items() if not is_group(schema))


def replaced(base: Mapping[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """A copy in which one value is another, and its neighbours are what they were."""
    key, *rest = path
    return {**base, key: replaced(base.get(key) or {}, tuple(rest), value) if rest else value}


def merged(base: Any, over: Any) -> Any:
    if not (isinstance(base, Mapping) and isinstance(over, Mapping)):
        return over
    return {**base, **{key: merged(base[key], value) if key in base else value for key, value in over.items()}}


@pytest.mark.parametrize("path", sorted(DESCRIBED), ids=".".join)
def test_every_value_is_described_in_a_sentence(path: Path) -> None:
    assert DESCRIBED[path].get("description", "").endswith(".")


@pytest.mark.parametrize("path", LEAVES, ids=".".join)
def test_every_value_stands_in_the_file_with_its_default(path: Path) -> None:
    at: Any = VALUES
    for key in path:
        assert key in at
        at = at[key]


def test_the_file_has_nothing_that_the_schema_does_not_know() -> None:
    assert charts.render_text(VALUES) == charts.render_text({})


@pytest.mark.parametrize("path", LEAVES, ids=".".join)
def test_every_value_has_an_effect(path: Path) -> None:
    # A digest would hide its tag.
    everything = replaced(merged(VALUES, values_sets.EVERYTHING), ("image", "control", "digest"), "")
    changed = replaced(everything, path, OTHER_VALUES[path])
    crd = path == ("crds", "install")
    assert charts.render_text(changed, crd=crd) != charts.render_text(everything)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        pytest.param({"operators": {}}, "operators", id="unknown-group"),
        pytest.param({"operator": {"replica": 2}}, "replica", id="misspelt"),
        pytest.param({"operator": {"replicas": 3}}, "/operator/replicas", id="three-replicas"),
        pytest.param({"operator": {"replicas": 0}}, "/operator/replicas", id="no-replica"),
        pytest.param({"operator": {"logLevel": "loud"}}, "/operator/logLevel", id="unknown-level"),
        pytest.param({"operator": {"resources": {"limits": {"memory": "a lot"}}}}, "/limits/memory", id="quantity"),
        pytest.param({"image": {"worker": {"tag": "latest"}}}, "/image/worker/tag", id="latest"),
        pytest.param({"image": {"worker": {"digest": "abc"}}}, "/image/worker/digest", id="no-digest"),
        pytest.param({"image": {"worker": {"repository": "a b"}}}, "/image/worker/repository", id="repository"),
        pytest.param({"image": {"pullPolicy": "Sometimes"}}, "/image/pullPolicy", id="pull-policy"),
        pytest.param({"image": {"pullSecrets": [{"name": "x"}]}}, "/image/pullSecrets/0", id="secret-as-map"),
        pytest.param({"watch": {"namespaces": "team"}}, "/watch/namespaces", id="namespaces-no-list"),
        pytest.param({"watch": {"namespaces": ["Team"]}}, "/watch/namespaces/0", id="namespace-name"),
        pytest.param({"watch": {"namespaces": ["a", "a"]}}, "/watch/namespaces", id="namespace-twice"),
        pytest.param({"workloads": {"hostPaths": ["/"]}}, "/workloads/hostPaths/0", id="the-whole-node"),
        pytest.param({"workloads": {"hostPaths": ["/mnt/../etc"]}}, "/workloads/hostPaths/0", id="a-way-up"),
        pytest.param({"workloads": {"hostPaths": ["models"]}}, "/workloads/hostPaths/0", id="relative-path"),
        pytest.param({"workloads": {"hfEndpoint": "hub.example.com"}}, "/workloads/hfEndpoint", id="no-scheme"),
        pytest.param({"metrics": {"port": 0}}, "/metrics/port", id="port"),
        pytest.param({"tracing": {"endpoint": "http://collector"}}, "/tracing/endpoint", id="endpoint-without-port"),
        pytest.param({"tests": {"timeoutSeconds": 1}}, "/tests/timeoutSeconds", id="no-patience"),
        pytest.param({"commonLabels": {"app.kubernetes.io/name": "x"}}, "app.kubernetes.io/name", id="our-own-label"),
    ],
)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(charts.HelmError, match=complaint):
        charts.render_text(values)
