"""Whose images run after an upgrade of the operator, and which commit of a model after a restart of its loader."""

from __future__ import annotations

from typing import Any

import pytest
from operator_cases import (
    COMPONENTS,
    deployment,
    environment,
    main_container,
    observed,
    plan,
    resource,
    settings,
    standing,
)

from emoe_operator.desired import Desired
from emoe_operator.observed import ModelPhase, ModelView
from emoe_operator.plan import plan_children

NEW = settings(control_image="emoe/control:2", worker_image="emoe/worker:2")
KEPT = {"images": {"control": "emoe/control:1", "worker": "emoe/worker:1", "generation": 1}}
HUB = {"model": {"source": "hf://org/name"}}


def images(desired: Desired) -> set[str]:
    return {main_container(desired, one)["image"] for one in COMPONENTS}


def upgraded(spec: dict[str, Any], *, generation: int) -> Desired:
    """Generation 1 of an empty spec stands; the operator is newer since."""
    changed = resource(spec, generation=generation, status=KEPT)
    return plan_children(changed, observed(children=standing(plan())), NEW)


def test_a_new_resource_runs_the_operators_images() -> None:
    assert images(plan_children(resource(), observed(), NEW)) == {"emoe/control:2", "emoe/worker:2"}


def test_an_upgraded_operator_changes_no_pod() -> None:
    again = upgraded({}, generation=1)
    assert [deployment(again, one) for one in COMPONENTS] == [deployment(plan(), one) for one in COMPONENTS]


def test_images_are_kept_although_somebody_deleted_the_pods_deployments() -> None:
    desired = plan_children(resource(status=KEPT), observed(), NEW)
    assert images(desired) == {"emoe/control:1", "emoe/worker:1"}


def test_a_changed_spec_takes_up_the_operators_images() -> None:
    assert images(upgraded({"workers": {"maxContext": 1024}}, generation=2)) == {"emoe/control:2", "emoe/worker:2"}


@pytest.mark.parametrize(
    "spec",
    [{"workers": {"replicas": 5}}, {"services": {"scheduler": {"replicas": 2}}}, {"suspend": True}],
    ids=["workers scaled", "schedulers scaled", "suspended"],
)
def test_a_change_of_replicas_alone_rolls_nothing(spec: dict[str, Any]) -> None:
    full = {"workers": {}, "services": {"scheduler": {}}, "suspend": False}
    before = plan(full)
    changed = resource({**full, **spec}, generation=2, status=KEPT)
    desired = plan_children(changed, observed(children=standing(before)), NEW)
    assert images(desired) == {"emoe/control:1", "emoe/worker:1"}


def test_replicas_inside_a_pod_template_are_no_replicas_of_ours() -> None:
    before = plan({"workers": {"podTemplate": {"spec": {"replicas": 1}}}})
    changed = resource({"workers": {"podTemplate": {"spec": {"replicas": 2}}}}, generation=2, status=KEPT)
    desired = plan_children(changed, observed(children=standing(before)), NEW)
    assert images(desired) == {"emoe/control:2", "emoe/worker:2"}


def revision_of(desired: Desired) -> str:
    config = desired.child("ConfigMap", "tiny-model")
    assert config is not None
    return str(config["data"]["revision"])


@pytest.mark.parametrize(
    ("model", "status", "revision"),
    [
        pytest.param(None, {}, "main", id="never resolved"),
        pytest.param(ModelView(phase=ModelPhase.FETCHING, revision="c0ffee"), {}, "c0ffee", id="just resolved"),
        pytest.param(None, {"model": {"revision": "c0ffee"}}, "c0ffee", id="resolved before"),
        pytest.param(
            ModelView(phase=ModelPhase.FETCHING, revision="0dd"),
            {"model": {"revision": "c0ffee"}},
            "c0ffee",
            id="once and for all",
        ),
    ],
)
def test_a_revision_is_resolved_once(model: ModelView | None, status: dict[str, Any], revision: str) -> None:
    desired = plan_children(resource(HUB, status=status), observed(model=model), settings())
    assert revision_of(desired) == revision


def test_the_revision_that_was_asked_for_stands_until_it_is_resolved() -> None:
    spec = {"model": {"source": "hf://org/name", "revision": "v1"}}
    assert revision_of(plan_children(resource(spec), observed(model=None), settings())) == "v1"


def test_a_running_loader_is_not_restarted_by_what_it_has_resolved() -> None:
    unknown = plan_children(resource(HUB), observed(model=None), settings())
    known = plan(HUB)
    assert revision_of(unknown) != revision_of(known)
    assert deployment(unknown, "loader") == deployment(known, "loader")
    reference = {"configMapKeyRef": {"name": "tiny-model", "key": "revision"}}
    assert environment(known, "loader")["EMOE_LOADER_REVISION"] == reference
