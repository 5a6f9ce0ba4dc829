"""What cannot be served: a problem says what would do, and what was accepted before is kept meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from operator_cases import observed, plan, resource, settings, standing

from emoe_operator.plan import plan_children

HUB = {"source": "hf://org/name"}


NO_QUANTITY = {"containers": [{"name": "main", "resources": {"limits": {"memory": []}}}]}
REFUSED = {
    "no source": ({"model": {}}, "InvalidSpec", "spec.model.source"),
    "unknown field": ({"wokers": {}}, "InvalidSpec", "spec.wokers"),
    "memory that is none": ({"experts": {"memory": "lots"}}, "InvalidSpec", "25%"),
    "folder not allowed": ({"model": HUB, "cache": {"hostPath": "/etc"}}, "HostPathNotAllowed", "/srv/models"),
    "name alike": ({"model": HUB, "cache": {"hostPath": "/srv/models-too"}}, "HostPathNotAllowed", "hostPaths"),
    "below every layer's top-k": ({"experts": {"memory": "2Mi"}}, "ExpertMemoryTooSmall", "at least 10"),
    "below one layer's top-k": (
        {"experts": {"memory": "1Mi", "missPolicy": "load"}},
        "ExpertMemoryTooSmall",
        "at least 2",
    ),
    "limit below the plan": (
        {"workers": {"resources": {"limits": {"memory": "100Mi"}}}},
        "MemoryLimitTooLow",
        "spec.workers.resources.limits.memory",
    ),
    "auto of nothing": ({"experts": {"memory": "auto"}}, "MemoryNotPlannable", "resources.limits.memory"),
    "pinned nowhere": ({"experts": {"pinned": [{"layer": 9, "experts": [0]}]}}, "UnknownPinnedExperts", "layer 9"),
    "resources that are none": ({"workers": {"podTemplate": {"spec": NO_QUANTITY}}}, "InvalidPodTemplate", "quantity"),
}


@pytest.mark.parametrize(("spec", "reason", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_served_is_refused_with_what_would_do(spec: dict[str, Any], reason: str, said: str) -> None:
    desired = plan(spec)
    assert [problem.reason for problem in desired.problems] == [reason]
    assert said in desired.problems[0].message


def test_every_problem_of_a_spec_is_told_at_once() -> None:
    message = plan({"experts": {"memory": "x"}, "workers": {"replicas": -1}}).problems[0].message
    assert "spec.experts.memory" in message
    assert "spec.workers.replicas" in message


@pytest.mark.parametrize("path", ["/srv/models", "/srv/models/a/b"])
def test_an_allowed_folder_and_those_below_it_are_taken(path: str) -> None:
    assert not plan({"model": HUB, "cache": {"hostPath": path}}).problems


def test_memory_is_not_judged_before_the_models_shape_is_known() -> None:
    desired = plan_children(resource({"experts": {"memory": "1Mi"}}), observed(model=None), settings())
    assert not desired.problems
    assert desired.children


def test_memory_that_no_shape_would_make_plannable_is_refused_at_once() -> None:
    desired = plan_children(resource({"experts": {"memory": "auto"}}), observed(model=None), settings())
    assert [problem.reason for problem in desired.problems] == ["MemoryNotPlannable"]


def test_nothing_is_planned_while_the_resource_is_paused() -> None:
    paused = resource({"wokers": {}}, annotations={"emoe.dev/paused": "true"})
    desired = plan_children(paused, observed(children=standing(plan())), settings())
    assert desired.paused
    assert (desired.children, desired.prune, desired.problems) == ((), (), ())


def test_a_budget_that_is_too_small_is_told_with_the_plan_and_its_least() -> None:
    desired = plan({"experts": {"memory": "64Ki"}})
    assert [problem.reason for problem in desired.problems] == ["ExpertMemoryTooSmall"]
    assert desired.worker_plan is not None
    assert desired.worker_plan.min_bytes > 64 * 1024
    assert desired.children == ()
