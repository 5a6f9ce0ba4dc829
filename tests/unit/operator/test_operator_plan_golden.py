"""Whole renderings: as they were read and agreed to, as Kubernetes' schemas have them, and the same every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis
import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from operator_cases import observed, resource, settings
from write_golden import SETTINGS, children_path, plan_golden, resource_paths

from emoe_operator import drift
from emoe_operator.plan import plan_children

PATHS = resource_paths()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name.split(".")[0])
def test_children_are_rendered_as_agreed(path: Path) -> None:
    # To agree to a change: python tests/unit/operator/write_golden.py
    agreed = list(yaml.safe_load_all(children_path(path).read_text()))
    assert list(plan_golden(path).children) == agreed


def test_three_resources_are_agreed_on() -> None:
    assert [path.name for path in PATHS] == ["everything.moed.yaml", "gpu.moed.yaml", "minimal.moed.yaml"]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name.split(".")[0])
def test_children_keep_to_the_schemas_of_kubernetes(path: Path) -> None:
    for manifest in plan_golden(path).children:
        kubernetes_validate.validate(manifest, "1.34", strict=True)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name.split(".")[0])
def test_every_child_is_labelled_and_all_but_a_retained_cache_owned(path: Path) -> None:
    for manifest in plan_golden(path).children:
        meta = manifest["metadata"]
        assert meta["namespace"] == "apps"
        assert meta["labels"]["emoe.dev/moedeployment"] == "tiny"
        assert [owner["kind"] for owner in meta["ownerReferences"]] == ["MoEDeployment"]


def _shuffled(value: Any, draw: Any) -> Any:
    if isinstance(value, dict):
        order = draw(st.permutations(list(value)))
        return {key: _shuffled(value[key], draw) for key in order}
    return [_shuffled(item, draw) for item in value] if isinstance(value, list) else value


@hypothesis.settings(deadline=None)
@given(data=st.data())
def test_a_rendering_depends_on_values_and_not_on_the_order_of_keys(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(PATHS))
    spec = yaml.safe_load(path.read_text())["spec"]
    again = plan_children(resource(_shuffled(spec, data.draw)), observed(), SETTINGS)
    first = plan_children(resource(spec), observed(), SETTINGS)
    assert first.children
    assert [drift.rendered_hash(one) for one in again.children] == [drift.rendered_hash(one) for one in first.children]


@given(names=st.permutations(["HTTP_PROXY", "HF_ENDPOINT", "NO_PROXY"]))
def test_the_order_of_the_operators_own_variables_does_not_matter(names: list[str]) -> None:
    given_env = settings(pod_env={name: name.lower() for name in names})
    sorted_env = settings(pod_env={name: name.lower() for name in sorted(names)})
    assert plan_children(resource(), observed(), given_env) == plan_children(resource(), observed(), sorted_env)
