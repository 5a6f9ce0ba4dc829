"""What is said of a resource that is refused, suspended or paused, and of what stands meanwhile."""

from __future__ import annotations

import pytest
from operator_cases import (
    model_ready,
    observed,
    plan,
    resource,
    standing,
)
from status_cases import conditions, message, running, status_of


def test_a_refused_spec_is_not_ready_and_what_stood_serves_on() -> None:
    before = status_of(running())
    refused = resource({"experts": {"memory": "1Mi"}}, generation=2, status=before)
    status = status_of(running(), refused)
    found = conditions(status)
    assert found["SpecAccepted"] == found["Ready"] == found["Progressing"] == ("False", "ExpertMemoryTooSmall")
    assert found["Available"] == ("True", "Serving")
    assert found["WorkersReady"] == ("True", "WorkersReady")
    assert "generation 1, which was accepted last, is kept" in message(status, "SpecAccepted")
    assert (status["address"], status["images"], status["plan"]) == (
        before["address"],
        before["images"],
        before["plan"],
    )


def test_a_refused_spec_that_is_suspended_says_so_and_counts_the_pods_that_still_stop() -> None:
    refused = resource({"experts": {"memory": "1Mi"}, "suspend": True}, generation=2, status=status_of(running()))
    stopping = status_of(running(), refused)
    stopped = conditions(status_of(running(children=standing(plan({"suspend": True})), pods=()), refused))
    assert conditions(stopping)["Progressing"] == ("True", "Suspending")
    assert "no pod runs meanwhile" in message(stopping, "SpecAccepted")
    assert stopped["Ready"] == stopped["Progressing"] == ("False", "ExpertMemoryTooSmall")
    assert stopped["Available"] == stopped["WorkersReady"] == ("False", "Suspended")


def test_a_spec_refused_from_the_start_has_no_workers_to_wait_for() -> None:
    found = conditions(status_of(observed(), resource({"experts": {"memory": "1Mi"}})))
    assert found["WorkersReady"] == ("False", "ExpertMemoryTooSmall")


def test_a_suspended_resource_says_so_and_counts_the_pods_that_still_stop() -> None:
    spec = {"suspend": True}
    children = standing(plan(spec))
    stopping = conditions(status_of(running(children=children), resource(spec)))
    stopped = conditions(status_of(running(children=children, pods=(), model=None), resource(spec)))
    assert stopping["Progressing"] == ("True", "Suspending")
    assert stopped["Progressing"] == ("False", "Suspended")
    assert {kind for kind, (_, reason) in stopped.items() if reason == "Suspended"} == {
        "Ready",
        "Available",
        "ModelReady",
        "ServicesReady",
        "WorkersReady",
        "Progressing",
    }


@pytest.mark.parametrize(
    ("generation", "ready"), [(1, ("True", "Serving")), (2, ("False", "Paused"))], ids=["applied", "newer"]
)
def test_a_paused_resource_is_ready_only_if_its_spec_was_applied(generation: int, ready: tuple[str, str]) -> None:
    before = status_of(running())
    paused = resource(generation=generation, status=before, annotations={"emoe.dev/paused": "true"})
    found = conditions(status_of(running(), paused))
    assert found["Ready"] == ready
    assert found["Progressing"] == ("False", "Paused")


def test_a_budget_refused_before_any_workers_stand_leaves_its_figures_in_the_plan() -> None:
    status = status_of(observed(model=model_ready()), resource({"experts": {"memory": "64Ki"}}))
    assert status["plan"]["minBytes"] > 64 * 1024
