"""The schema by itself; that a real API server takes it and keeps its rules is an integration test's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emoe.api.crd import build_crd, build_schema

ROOT = Path(__file__).resolve().parents[3]
FORBIDDEN = frozenset({"$ref", "$defs", "title", "const", "propertyNames", "allOf", "oneOf", "prefixItems"})
FREE = "x-kubernetes-preserve-unknown-fields"


def walk(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield from walk(node[key], f"{path}[]")


def spec_nodes() -> list[tuple[str, dict[str, Any]]]:
    return list(walk(build_schema()["properties"]["spec"], "spec"))


def test_the_schema_is_structural() -> None:
    for path, node in walk(build_schema()):
        assert not FORBIDDEN & node.keys(), path
        assert node.get("additionalProperties") not in (True, False), path
        assert "type" in node or node.get("x-kubernetes-int-or-string") is True, path
        assert node.get("type") != "array" or "items" in node, path


def test_every_field_is_described_in_one_line() -> None:
    named = [(path, node) for path, node in walk(build_schema()) if not path.endswith("]") and FREE not in path]
    bare = [path for path, node in named if not node.get("description") and path not in ("", ".metadata")]
    assert [path for path in bare if ".podTemplate.spec." not in path] == []
    assert not [path for path, node in named if "\n" in node.get("description", "")]


def test_what_rules_look_at_is_bounded_so_that_their_cost_is() -> None:
    for path, node in spec_nodes():
        if node.get("type") == "string" and "enum" not in node:
            assert "maxLength" in node, path
        if node.get("type") == "array":
            assert "maxItems" in node, path
        if node.get("type") == "object" and "additionalProperties" in node:
            assert "maxProperties" in node, path


def test_an_object_with_defaults_inside_has_one_itself() -> None:
    """Or `.spec.workers.replicas` would not exist where workers are left out, and nothing could be scaled."""
    for path, node in spec_nodes():
        for name, child in node.get("properties", {}).items():
            inner = any("default" in grandchild for grandchild in child.get("properties", {}).values())
            required = name in node.get("required", ()) or (path, name) in OPTIONAL
            assert not inner or required or child.get("default") == {}, f"{path}.{name}"


OPTIONAL = {("spec", "cache"), ("spec", "tracing")}
"""Left out means none of it: a default would make one."""


def test_defaults_stand_where_people_look_for_them() -> None:
    spec = build_schema()["properties"]["spec"]["properties"]
    assert spec["workers"]["properties"]["replicas"]["default"] == 1
    assert spec["experts"]["properties"]["memory"]["default"] == "25%"
    assert spec["services"]["properties"]["scheduler"]["properties"]["replicas"]["default"] == 1
    assert spec["suspend"]["default"] is False
    assert "default" not in spec["tasks"]


def test_tasks_and_conditions_are_maps_by_their_keys() -> None:
    root = build_schema()["properties"]
    tasks = root["spec"]["properties"]["tasks"]
    conditions = root["status"]["properties"]["conditions"]
    assert (tasks["x-kubernetes-list-type"], tasks["x-kubernetes-list-map-keys"]) == ("map", ["name"])
    assert (conditions["x-kubernetes-list-type"], conditions["x-kubernetes-list-map-keys"]) == ("map", ["type"])


def test_only_a_pod_templates_spec_takes_what_is_not_known() -> None:
    free = {path for path, node in walk(build_schema()) if node.get(FREE)}
    assert free
    assert all(".podTemplate.spec" in path for path in free)


def test_every_rule_says_what_would_do() -> None:
    rules = [rule for _, node in walk(build_schema()) for rule in node.get("x-kubernetes-validations", ())]
    assert len(rules) > 15
    for rule in rules:
        assert ";" in rule["message"] or "give exactly one" in rule["message"], rule
        assert rule["message"][0].islower(), rule


def test_the_columns_and_the_scale_subresource_are_those_that_people_use() -> None:
    version = build_crd()["spec"]["versions"][0]
    shown = [column["name"] for column in version["additionalPrinterColumns"] if not column.get("priority")]
    assert shown == ["Ready", "Reason", "Resident", "Hit", "Workers", "Model", "Age"]
    assert version["subresources"]["scale"] == {
        "specReplicasPath": ".spec.workers.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }


def test_the_charts_definition_is_what_the_types_give() -> None:
    tool = [sys.executable, str(ROOT / "tools" / "crd.py"), "check"]
    done = subprocess.run(tool, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_nothing_is_filled_into_a_status() -> None:
    status = build_schema()["properties"]["status"]
    assert [path for path, node in walk(status) if "default" in node] == []
