"""A spec that is refused: what was accepted last is kept and corrected, and how many pods run follows the newest."""

from __future__ import annotations

from typing import Any

import pytest
from operator_cases import COMPONENTS, NOW, deployment, model_ready, observed, plan, resource, settings, standing

from emoe_operator.desired import Desired
from emoe_operator.observed import Observed, Resource
from emoe_operator.plan import plan_children
from emoe_operator.status import build_status

ACCEPTED: dict[str, Any] = {
    "workers": {"replicas": 1, "maxContext": 1024, "podTemplate": {"spec": {"hostname": None}}},
    "suspend": False,
}
REFUSED = {
    "memory too small": {"experts": {"memory": "1Mi"}},
    "no such field": {"wokers": {}},
    "folder not allowed": {"model": {"source": "hf://org/name"}, "cache": {"hostPath": "/etc"}},
}


def status_after(asked: Resource, seen: Observed) -> dict[str, Any]:
    return build_status(asked, seen, plan_children(asked, seen, settings()), (), settings())


def refused(change: dict[str, Any], *, seen: Observed | None = None, status: Any = None, **fields: Any) -> Desired:
    """Generation 1 was accepted and stands; generation 2 is looked at."""
    before = status_after(resource(ACCEPTED), observed()) if status is None else status
    changed = resource({**ACCEPTED, **change}, generation=2, status=before)
    return plan_children(changed, seen or observed(children=standing(plan(ACCEPTED))), settings(**fields))


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED.keys())
def test_the_children_are_those_that_were_accepted_last(change: dict[str, Any]) -> None:
    desired = refused(change)
    assert desired.problems
    assert desired.children == plan(ACCEPTED).children
    assert desired.prune == ()


def test_what_a_refused_spec_left_behind_before_is_removed() -> None:
    extra = standing(plan({**ACCEPTED, "services": {"predictor": {"storage": {"size": "1Gi"}}}}))
    claim = ("PersistentVolumeClaim", "tiny-predictor")
    assert claim in extra
    assert refused(REFUSED["memory too small"], seen=observed(children=extra)).prune == (claim,)


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED.keys())
def test_suspend_acts_whatever_else_is_refused(change: dict[str, Any]) -> None:
    desired = refused({**change, "suspend": True})
    assert desired.suspended
    assert [deployment(desired, one)["spec"]["replicas"] for one in COMPONENTS] == [0, 0, 0, 0]


def test_workers_are_scaled_whatever_else_is_refused() -> None:
    desired = refused({"experts": {"memory": "1Mi"}, "workers": {"replicas": 3}})
    assert deployment(desired, "worker")["spec"]["replicas"] == 3
    template = deployment(plan(ACCEPTED), "worker")["spec"]["template"]
    assert deployment(desired, "worker")["spec"]["template"] == template


def test_an_upgraded_operator_rolls_nothing_of_what_is_kept() -> None:
    newer = {"control_image": "emoe/control:2", "worker_image": "emoe/worker:2"}
    assert refused(REFUSED["memory too small"], **newer).children == plan(ACCEPTED).children


@pytest.mark.parametrize(
    "status", [{}, {"accepted": {"generation": 1, "spec": "{"}}, {"accepted": {"generation": 1, "spec": "[]"}}]
)
def test_without_a_memory_what_stands_is_left_but_suspended_all_the_same(status: dict[str, Any]) -> None:
    desired = refused({"experts": {"memory": "1Mi"}, "suspend": True}, status=status)
    assert (desired.children, desired.prune, desired.suspended) == ((), (), True)
    assert not refused(REFUSED["memory too small"], status=status).suspended


def test_a_folder_that_is_no_longer_allowed_is_not_mounted_anew() -> None:
    cached = {"model": {"source": "hf://org/name"}, "cache": {"hostPath": "/srv/models"}}
    before = status_after(resource(cached), observed())
    again = plan_children(resource(cached, status=before), observed(), settings(host_paths=()))
    assert [problem.reason for problem in again.problems] == ["HostPathNotAllowed"]
    assert again.children == ()


def test_a_spec_refused_once_the_models_shape_is_known_keeps_its_services() -> None:
    small = {"experts": {"memory": "1Mi"}}
    before = status_after(resource(small), observed(model=None))
    desired = plan_children(resource(small, status=before), observed(), settings())
    assert [problem.reason for problem in desired.problems] == ["ExpertMemoryTooSmall"]
    assert desired.child("Deployment", "tiny-loader")
    assert desired.child("Deployment", "tiny-worker") is None


def test_what_was_accepted_stands_in_for_what_the_api_server_refuses() -> None:
    desired = refused({"workers": {"maxContext": 2048}})
    assert not desired.problems
    assert desired.children != desired.last_good == plan(ACCEPTED).children


def test_a_spec_that_is_accepted_needs_no_other() -> None:
    before = status_after(resource(ACCEPTED), observed())
    assert plan_children(resource(ACCEPTED, status=before), observed(), settings()).last_good == ()


def test_an_accepted_spec_is_remembered_and_a_refused_or_paused_one_is_not() -> None:
    before = status_after(resource(ACCEPTED), observed())
    assert before["accepted"]["generation"] == 1
    refused_later = resource({**ACCEPTED, "experts": {"memory": "1Mi"}}, generation=2, status=before)
    assert status_after(refused_later, observed())["accepted"] == before["accepted"]
    paused = resource({}, generation=2, status=before, annotations={"emoe.dev/paused": "true"})
    assert status_after(paused, observed())["accepted"] == before["accepted"]
    accepted_later = resource({}, generation=3, status=before)
    assert status_after(accepted_later, observed(model=model_ready(), now=NOW))["accepted"]["generation"] == 3
