"""Without an API server the same resources are refused, with the same words."""

from __future__ import annotations

from typing import Any

import pytest
from cluster.refused_cases import ACCEPTED, CHANGES, REFUSED, VALID, Case, apply_patch

from emoe.api.resource import MoEDeployment
from emoe.core.errors import InvalidResourceError


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.id)
def test_what_the_api_server_refuses_is_refused_here(case: Case) -> None:
    with pytest.raises(InvalidResourceError) as caught:
        MoEDeployment.parse(apply_patch(case.patch))
    assert [word for word in case.words if word not in str(caught.value)] == []


@pytest.mark.parametrize("patch", [patch for _, patch in ACCEPTED], ids=[name for name, _ in ACCEPTED])
def test_what_the_api_server_takes_is_taken_here(patch: dict[str, Any]) -> None:
    assert MoEDeployment.parse(apply_patch(patch)).spec.model.source


@pytest.mark.parametrize("case", CHANGES, ids=lambda case: case.id)
def test_what_is_refused_as_a_change_would_do_by_itself(case: Case) -> None:
    MoEDeployment.parse(apply_patch(case.patch, {**VALID, "spec": {"model": {"source": "hf://c/d"}}}))


def test_all_problems_are_listed_at_once_each_with_its_path() -> None:
    patch = {"spec": {"experts": {"memory": "much"}, "workers": {"replicas": -1}, "tasks": [{"name": "qa"}, {}]}}
    with pytest.raises(InvalidResourceError) as caught:
        MoEDeployment.parse(apply_patch(patch))
    paths = [problem.path for problem in caught.value.problems]
    assert paths == ["spec.experts.memory", "spec.tasks[1].name", "spec.workers.replicas"]


@pytest.mark.parametrize("key", ["replica", "max_context"], ids=["misspelt", "as Python has it"])
def test_a_field_that_does_not_exist_is_refused(key: str) -> None:
    with pytest.raises(InvalidResourceError, match=rf"spec\.workers\.{key}: there is no such field"):
        MoEDeployment.parse(apply_patch({"spec": {"workers": {key: 1024}}}))


@pytest.mark.parametrize(
    "body",
    [{}, {"metadata": {"name": "a"}}, {"metadata": [], "spec": 3}, {**VALID, "kind": "Deployment"}],
    ids=["nothing", "no spec", "other types", "another kind"],
)
def test_a_body_that_is_no_resource_is_one_clear_error(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidResourceError, match=r"metadata|spec|kind"):
        MoEDeployment.parse(body)
