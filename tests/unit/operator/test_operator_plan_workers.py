"""Workers: when they are made, how many, how they are replaced, and how much memory they get."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from operator_cases import (
    MIB,
    deployment,
    environment,
    geometry,
    keys,
    main_container,
    model_ready,
    observed,
    plan,
    resource,
    settings,
)

from emoe_operator.observed import ModelPhase, ModelView
from emoe_operator.plan import plan_children
from emoe_operator.recorded import describe_geometry

GPU = {"workers": {"resources": {"limits": {"nvidia.com/gpu": 1}}}}
WORKER = ("Deployment", "tiny-worker")


def limits(desired: Any) -> dict[str, str]:
    found = main_container(desired, "worker")["resources"]["limits"]
    assert isinstance(found, dict)
    return found


def test_no_workers_are_made_before_the_models_shape_is_known() -> None:
    fetching = observed(model=ModelView(phase=ModelPhase.FETCHING))
    desired = plan_children(resource(), fetching, settings())
    assert WORKER not in keys(desired)
    assert ("Deployment", "tiny-loader") in keys(desired)
    assert desired.worker_plan is None


@pytest.mark.parametrize("model", [None, ModelView(phase=ModelPhase.RESOLVING)], ids=["unheard", "starting again"])
def test_workers_stay_as_they_are_while_the_loader_is_away(model: ModelView | None) -> None:
    said = {
        "model": {
            "digest": geometry().digest,
            "family": "olmoe",
            "geometry": describe_geometry(geometry()).to_dict(),
        }
    }
    away = plan_children(resource(status=said), observed(model=model), settings())
    assert deployment(away, "worker") == deployment(plan(), "worker")


def test_a_status_that_cannot_be_read_is_no_reason_to_fail() -> None:
    desired = plan_children(resource(status={"model": {"geometry": "?"}}), observed(model=None), settings())
    assert not desired.problems
    assert desired.geometry is None


SURGE, NO_SURGE = {"maxSurge": 1, "maxUnavailable": 0}, {"maxSurge": 0, "maxUnavailable": 1}
STRATEGIES = {
    "cpu": ({}, SURGE),
    "gpu": (GPU, NO_SURGE),
    "gpu with one to spare": ({**GPU, "rollout": SURGE}, SURGE),
    "cpu without surge": ({"rollout": {"maxSurge": 0}}, NO_SURGE),
    "gpu with none missing": ({**GPU, "rollout": {"maxUnavailable": 0}}, SURGE),
    "a share": ({"rollout": {"maxSurge": "50%"}}, {"maxSurge": "50%", "maxUnavailable": 0}),
}


@pytest.mark.parametrize(("spec", "strategy"), STRATEGIES.values(), ids=STRATEGIES.keys())
def test_workers_are_replaced_without_waiting_for_a_gpu_that_is_not_free(
    spec: dict[str, Any], strategy: dict[str, Any]
) -> None:
    assert deployment(plan(spec), "worker")["spec"]["strategy"]["rollingUpdate"] == strategy


def test_replicas_are_the_resources() -> None:
    assert deployment(plan({"workers": {"replicas": 3}}), "worker")["spec"]["replicas"] == 3


@pytest.mark.parametrize(("replicas", "budgets"), [(1, 0), (2, 1)])
def test_a_disruption_budget_stands_where_one_pod_may_go_and_another_stays(replicas: int, budgets: int) -> None:
    desired = plan({"workers": {"replicas": replicas}, "services": {"scheduler": {"replicas": replicas}}})
    found = [one for one in desired.children if one["kind"] == "PodDisruptionBudget"]
    assert len(found) == 2 * budgets
    assert all(one["spec"]["maxUnavailable"] == 1 for one in found)


def test_memory_follows_from_the_plan() -> None:
    desired = plan()
    assert desired.worker_plan is not None
    container = main_container(desired, "worker")
    assert limits(desired)["memory"] == f"{desired.worker_plan.worker_memory_bytes // MIB}Mi"
    assert container["resources"]["requests"]["memory"] == limits(desired)["memory"]
    assert environment(desired, "worker")["EMOE_WORKER_EXPERT_MEMORY"] == str(16 * MIB)


def test_a_limit_above_the_plan_is_the_users() -> None:
    desired = plan({"workers": {"resources": {"limits": {"memory": "4Gi"}}}})
    assert limits(desired)["memory"] == "4Gi"


def test_a_request_above_the_plan_raises_the_limit_to_it() -> None:
    desired = plan({"workers": {"resources": {"requests": {"memory": "4Gi"}}}})
    assert limits(desired)["memory"] == "4Gi"


def test_a_limit_in_the_pod_template_counts_as_the_resources_own() -> None:
    template = {"spec": {"containers": [{"name": "main", "resources": {"limits": {"memory": "100Mi"}}}]}}
    assert [one.reason for one in plan({"workers": {"podTemplate": template}}).problems] == ["MemoryLimitTooLow"]


def test_a_gpu_that_the_pod_template_asks_for_is_one() -> None:
    template = {"spec": {"containers": [{"name": "main", "resources": {"limits": {"nvidia.com/gpu": 1}}}]}}
    desired = plan({"workers": {"podTemplate": template}})
    assert deployment(desired, "worker")["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0
    assert desired.worker_plan is not None
    assert desired.worker_plan.device_bytes > 0


def test_a_device_that_is_only_requested_is_limited_to_the_same() -> None:
    assert limits(plan({"workers": {"resources": {"requests": {"nvidia.com/gpu": 1}}}}))["nvidia.com/gpu"] == "1"


def test_auto_takes_what_the_limit_leaves() -> None:
    spec = {"experts": {"memory": "auto"}, "workers": {"resources": {"limits": {"memory": "2Gi"}}}}
    desired = plan(spec)
    assert desired.worker_plan is not None
    assert desired.worker_plan.slots == 64
    assert limits(desired)["memory"] == "2Gi"


def test_auto_on_a_gpu_is_the_workers_to_find_out() -> None:
    desired = plan({"experts": {"memory": "auto"}, "workers": {"resources": {"limits": {"nvidia.com/gpu": 1}}}})
    assert not desired.problems
    assert environment(desired, "worker")["EMOE_WORKER_EXPERT_MEMORY"] == "auto"
    fixed = plan({"experts": {"memory": "25%"}, "workers": {"resources": {"limits": {"nvidia.com/gpu": 1}}}})
    assert limits(desired) == limits(fixed), "the host's part is planned without slots"


def test_nothing_in_a_rendering_depends_on_the_time_or_on_progress() -> None:
    later = observed(now=datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC), model=model_ready(num_bytes_done=1))
    assert plan_children(resource(), later, settings()).children == plan().children
