"""ServicesReady, WorkersReady and what sums them up: each reason once, and Ready never for what does not run."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from operator_cases import (
    NOW,
    container_status,
    model_ready,
    observed,
    plan,
    pod,
    pods_but,
    resource,
    standing,
)
from status_cases import ALL_PODS, conditions, message, rolling, running, status_of, worker_in

from emoe.api.status import CONDITION_TYPES
from emoe_operator.observed import Body, ModelFailure, ModelPhase, ModelView, Problem


def failure(text: str) -> dict[str, Any]:
    return {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": text}]}


def test_when_all_runs_all_is_true_and_nothing_progresses() -> None:
    assert conditions(status_of(running())) == {
        "Ready": ("True", "Serving"),
        "Available": ("True", "Serving"),
        "SpecAccepted": ("True", "Accepted"),
        "ModelReady": ("True", "ModelReady"),
        "ServicesReady": ("True", "ServicesReady"),
        "WorkersReady": ("True", "WorkersReady"),
        "Progressing": ("False", "Complete"),
    }


def test_every_condition_is_said_of_the_newest_generation_from_the_first_look_on() -> None:
    status = status_of(observed(model=None), resource(generation=7))
    assert [one["type"] for one in status["conditions"]] == list(CONDITION_TYPES)
    assert {one["observedGeneration"] for one in status["conditions"]} == {7}
    assert status["observedGeneration"] == 7


STALLED = {"conditions": [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]}
LAST_OOM = {"lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}, "restartCount": 1}
LAST_CRASH = {"lastState": {"terminated": {"exitCode": 1, "message": "boom"}}, "restartCount": 3}
NO_GPU = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "Insufficient nvidia.com/gpu",
}
NO_NODE = {**NO_GPU, "message": "node(s) had untolerated taint"}
WORKERS = {
    "loads": (rolling("worker"), worker_in(), "Loading", "True"),
    "starts": (rolling("worker"), pods_but("worker"), "WaitingForWorkers", "True"),
    "old pods left": (standing(plan(), worker={"replicas": 2}), ALL_PODS, "RollingOut", "True"),
    "not seen yet": (standing(plan(), worker={"observedGeneration": 0}), ALL_PODS, "Applying", "True"),
    "crashed once": (rolling("worker"), worker_in(**{**LAST_CRASH, "restartCount": 1}), "Restarting", "True"),
    "crash loop": (rolling("worker"), worker_in("CrashLoopBackOff", **LAST_CRASH), "CrashLoop", "False"),
    "memory": (rolling("worker"), worker_in(**LAST_OOM), "OutOfMemory", "False"),
    "image": (rolling("worker"), worker_in("ErrImagePull"), "ImagePullFailed", "False"),
    "secret": (rolling("worker"), worker_in("CreateContainerConfigError"), "ContainerNotCreated", "False"),
    "gpu": (rolling("worker"), pods_but("worker", pod("worker", conditions=[NO_GPU])), "WaitingForGPU", "False"),
    "node": (rolling("worker"), pods_but("worker", pod("worker", conditions=[NO_NODE])), "Unschedulable", "False"),
    "quota": (rolling("worker", **failure("exceeded quota: q")), pods_but("worker"), "QuotaExceeded", "False"),
    "refused pods": (rolling("worker", **failure("no such account")), pods_but("worker"), "PodsNotCreated", "False"),
    "stalled": (rolling("worker", **STALLED), worker_in(), "Stalled", "False"),
}


@pytest.mark.parametrize(("children", "pods", "reason", "moves"), WORKERS.values(), ids=WORKERS.keys())
def test_each_cause_for_missing_workers_has_its_reason(
    children: Any, pods: tuple[Body, ...], reason: str, moves: str
) -> None:
    found = conditions(status_of(running(children=children, pods=pods)))
    assert found["WorkersReady"] == ("False", reason)
    assert found["Ready"] == ("False", reason)
    assert found["Progressing"] == (moves, reason)
    assert found["ServicesReady"][0] == "True"


def test_a_new_revision_that_crashes_is_not_ready_while_the_old_one_serves() -> None:
    children = standing(plan(), worker={"replicas": 2, "updatedReplicas": 1, "availableReplicas": 1})
    pods = (*ALL_PODS, *worker_in("CrashLoopBackOff", **LAST_CRASH)[-1:])
    found = conditions(status_of(running(children=children, pods=pods)))
    assert found["Ready"] == ("False", "CrashLoop")
    assert found["Available"] == ("True", "Serving")


def test_what_was_not_applied_yet_is_not_taken_for_the_newest() -> None:
    changed = resource({"workers": {"maxContext": 1024}}, generation=2)
    found = conditions(status_of(running(), changed))
    assert found["WorkersReady"] == ("False", "Applying")
    assert found["Ready"][0] == "False"


def test_some_workers_of_many_are_counted_and_the_others_named() -> None:
    asked = resource({"workers": {"replicas": 3}})
    children = standing(plan({"workers": {"replicas": 3}}), worker={"availableReplicas": 2})
    status = status_of(running(children=children, pods=(*ALL_PODS, *worker_in(**LAST_OOM)[-1:])), asked)
    assert message(status, "WorkersReady").startswith("2 of 3 workers are ready; tiny-worker-x1 was killed")


def test_the_gravest_of_several_troubles_gives_the_reason() -> None:
    waiting = pod("worker", ready=False, conditions=[NO_GPU])
    pods = (*pods_but("worker", waiting), *worker_in(**LAST_OOM)[-1:])
    status = status_of(running(children=rolling("worker"), pods=pods))
    assert conditions(status)["WorkersReady"] == ("False", "OutOfMemory")
    assert "GPU" in message(status, "WorkersReady")


def test_workers_wait_for_the_models_shape() -> None:
    found = conditions(status_of(observed(model=ModelView(phase=ModelPhase.FETCHING))))
    assert found["WorkersReady"] == ("False", "WaitingForModel")
    assert found["Available"] == ("False", "NoWorkerReady")


def test_no_workers_at_all_is_not_ready() -> None:
    spec = {"workers": {"replicas": 0}}
    found = conditions(status_of(running(children=standing(plan(spec)), pods=pods_but("worker")), resource(spec)))
    assert found["WorkersReady"] == found["Ready"] == found["Progressing"] == ("False", "ScaledToZero")


@pytest.mark.parametrize("component", ["loader", "predictor", "scheduler"])
def test_a_service_that_is_away_is_named(component: str) -> None:
    status = status_of(running(children=rolling(component), pods=pods_but(component)))
    assert conditions(status)["ServicesReady"] == ("False", "Starting")
    assert message(status, "ServicesReady").startswith(f"{component}: ")
    assert conditions(status)["Ready"][0] == "False"


def test_a_loader_that_fetches_is_waited_for_and_not_in_trouble() -> None:
    fetching = ModelView(phase=ModelPhase.FETCHING)
    children = rolling("loader", **STALLED)
    pods = pods_but("loader", pod("loader", ready=False))
    found = conditions(status_of(running(children=children, pods=pods, model=fetching)))
    assert found["ServicesReady"] == ("False", "WaitingForModel")
    assert found["Ready"] == ("False", "ModelFetching")
    assert found["Progressing"] == ("True", "ModelFetching")


CREATING = container_status(state={"waiting": {"reason": "ContainerCreating"}})
PLACED = {"type": "PodScheduled", "status": "True"}
SANDBOX = {"type": "PodReadyToStartContainers", "status": "True"}


def test_while_workers_pull_their_image_they_are_named_and_not_the_scheduler_that_waits_for_them() -> None:
    pulling = pod("worker", ready=False, phase="Pending", conditions=[PLACED, SANDBOX], containerStatuses=[CREATING])
    waits = {"availableReplicas": 0, "readyReplicas": 0}
    children = standing(plan(), worker=waits, scheduler={**waits, **STALLED})
    pods = (pod("loader"), pod("predictor"), pod("scheduler", ready=False), pulling)
    status = status_of(running(children=children, pods=pods))
    found = conditions(status)
    assert found["ServicesReady"] == found["WorkersReady"] == found["Ready"] == ("False", "WaitingForWorkers")
    assert found["Progressing"] == ("True", "WaitingForWorkers")
    assert "tiny-worker-x1: ContainerCreating (its image is pulled)" in message(status, "Ready")
    assert "see WorkersReady" in message(status, "ServicesReady")


def test_a_scheduler_that_waits_for_workers_does_not_hide_that_they_load() -> None:
    waits = {"availableReplicas": 0, "readyReplicas": 0}
    pods = (pod("loader"), pod("predictor"), pod("scheduler", ready=False), pod("worker", ready=False))
    found = conditions(status_of(running(children=standing(plan(), worker=waits, scheduler=waits), pods=pods)))
    assert (found["ServicesReady"][1], found["Ready"][1]) == ("WaitingForWorkers", "Loading")


def test_a_scheduler_that_itself_only_starts_waits_for_nobody() -> None:
    waits = {"availableReplicas": 0, "readyReplicas": 0}
    pods = (pod("loader"), pod("predictor"), pod("scheduler", ready=False, phase="Pending", conditions=[PLACED]))
    found = conditions(status_of(running(children=standing(plan(), worker=waits, scheduler=waits), pods=pods)))
    assert (found["ServicesReady"][1], found["WorkersReady"][1]) == ("Starting", "WaitingForWorkers")
    assert found["Ready"][1] == "Starting"


def test_a_broken_service_outranks_those_that_only_wait() -> None:
    children = standing(plan(), loader={"availableReplicas": 0}, predictor={"availableReplicas": 0})
    crashed = pod("predictor", ready=False, containerStatuses=[container_status(**LAST_CRASH)])
    pods = (pod("scheduler"), pod("worker"), pod("loader", ready=False), crashed)
    status = status_of(running(children=children, pods=pods))
    assert conditions(status)["ServicesReady"] == ("False", "CrashLoop")
    assert conditions(status)["Ready"] == ("False", "CrashLoop")
    assert "loader: " in message(status, "ServicesReady")


def test_without_a_scheduler_nothing_is_available() -> None:
    found = conditions(status_of(running(children=rolling("scheduler"), pods=pods_but("scheduler"))))
    assert found["Available"] == ("False", "NoSchedulerReady")


@pytest.mark.parametrize(("permanent", "moves"), [(True, "False"), (False, "True")], ids=["for good", "may pass"])
def test_progress_ends_where_only_a_person_can_help(permanent: bool, moves: str) -> None:
    view = ModelView(
        phase=ModelPhase.FAILED, failure=ModelFailure(reason="NotFound", message="404", permanent=permanent)
    )
    assert conditions(status_of(observed(model=view)))["Progressing"] == (moves, "ModelNotFound")


PROBLEMS = {
    "refused": (Problem(reason="Invalid", message="PVC tiny-cache: field is immutable"), "SpecAccepted", "Rejected"),
    "forbidden": (Problem(reason="Forbidden", message="Service tiny: no"), "Progressing", "Forbidden"),
    "quota": (Problem(reason="Forbidden", message="exceeded quota: services"), "Progressing", "QuotaExceeded"),
    "name taken": (Problem(reason="NameTaken", message="Service tiny is another's"), "Progressing", "NameTaken"),
}


@pytest.mark.parametrize(("problem", "kind", "reason"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_what_could_not_be_applied_is_told(problem: Problem, kind: str, reason: str) -> None:
    status = status_of(running(), None, problem)
    assert conditions(status)[kind] == ("False", reason)
    assert conditions(status)["Ready"] == ("False", reason)
    assert problem.message in message(status, "Ready")


def test_a_transitions_time_is_kept_until_the_status_changes() -> None:
    before = status_of(running())
    later = NOW + datetime.timedelta(hours=1)
    seen = running(now=later, children=rolling("worker"), pods=worker_in(), model=model_ready(revision="other"))
    after = status_of(seen, resource(status=before))
    times = {one["type"]: one["lastTransitionTime"] for one in after["conditions"]}
    assert times["ModelReady"] == times["SpecAccepted"] == "2026-01-02T03:04:05Z"
    assert times["Ready"] == times["WorkersReady"] == times["Progressing"] == "2026-01-02T04:04:05Z"


def test_a_changed_reason_alone_is_no_transition() -> None:
    before = status_of(running(children=rolling("worker"), pods=worker_in()))
    later = running(now=NOW + datetime.timedelta(hours=1), children=rolling("worker"), pods=worker_in(**LAST_OOM))
    after = status_of(later, resource(status=before))
    ready = next(one for one in after["conditions"] if one["type"] == "Ready")
    assert (ready["reason"], ready["lastTransitionTime"]) == ("OutOfMemory", "2026-01-02T03:04:05Z")


def test_a_status_that_nothing_has_changed_is_built_the_same() -> None:
    before = status_of(running())
    later = running(now=NOW + datetime.timedelta(days=1))
    assert status_of(later, resource(status=before)) == before
