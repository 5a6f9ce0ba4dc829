"""Every cause for which a pod does not serve, by the API server's own record of it, each under its own reason."""

from __future__ import annotations

from typing import Any

import pytest
from operator_cases import container_status, pod

from emoe_operator.diagnosis import describe_start, diagnose


def unschedulable(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"phase": "Pending", "conditions": [condition]}


def waiting(reason: str, message: str = "", **fields: Any) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"containerStatuses": [container_status(state=state, **fields)]}


def ended(field: str, **how: Any) -> dict[str, Any]:
    restarts = how.pop("restarts", 1)
    terminated = {"terminated": {"exitCode": 1, "reason": "Error", **how}}
    running = {} if field == "state" else {"state": {"running": {}}}
    return {"containerStatuses": [container_status(**{**running, field: terminated}, restartCount=restarts)]}


CAUSES = {
    "gpu": (unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."), "WaitingForGPU", "GPU"),
    "no node": (
        unschedulable("0/3 nodes are available: 3 Insufficient memory."),
        "Unschedulable",
        "Insufficient memory",
    ),
    "claim": (unschedulable('persistentvolumeclaim "models" not found'), "Unschedulable", "models"),
    "pull": (waiting("ErrImagePull", "not found"), "ImagePullFailed", "emoe/worker:1"),
    "pull pause": (waiting("ImagePullBackOff", "Back-off"), "ImagePullFailed", "pull secret"),
    "secret": (waiting("CreateContainerConfigError", 'secret "t" not found'), "ContainerNotCreated", 'secret "t"'),
    "memory": (ended("state", reason="OOMKilled", exitCode=137), "OutOfMemory", "600Mi"),
    "memory before": (ended("lastState", reason="OOMKilled", exitCode=137), "OutOfMemory", "raise"),
    "crash": (ended("lastState", exitCode=3, message="no such file"), "Restarting", "exit code 3"),
    "crash again": (ended("lastState", restarts=2, message="no such file"), "CrashLoop", "no such file"),
    "ends well, again": (ended("lastState", restarts=2, exitCode=0), "CrashLoop", "exit code 0"),
}


@pytest.mark.parametrize(("status", "reason", "said"), CAUSES.values(), ids=CAUSES.keys())
def test_each_cause_has_its_reason_and_says_what_to_look_at(status: dict[str, Any], reason: str, said: str) -> None:
    trouble = diagnose(pod("worker", ready=False, **status))
    assert trouble is not None
    assert trouble.reason == reason
    assert said in trouble.message
    assert "tiny-worker-x1" in trouble.message


def test_a_crash_loops_pause_keeps_the_last_words() -> None:
    last = {"terminated": {"exitCode": 1, "message": "port in use"}}
    status = waiting("CrashLoopBackOff", "back-off 10s", lastState=last, restartCount=1)
    trouble = diagnose(pod("worker", ready=False, **status))
    assert trouble is not None
    assert (trouble.reason, "port in use" in trouble.message) == ("CrashLoop", True)


@pytest.mark.parametrize(
    "status",
    [
        pytest.param(waiting("ContainerCreating"), id="is made"),
        pytest.param(waiting("PodInitializing"), id="is initialised"),
        pytest.param({"containerStatuses": [container_status(state={"running": {}})]}, id="runs for the first time"),
        pytest.param({"phase": "Pending", "conditions": []}, id="nobody has looked at it"),
    ],
)
def test_a_pod_that_is_only_starting_is_in_no_trouble(status: dict[str, Any]) -> None:
    assert diagnose(pod("worker", ready=False, **status)) is None


PLACED = {"type": "PodScheduled", "status": "True"}


def sandbox(status: str) -> dict[str, Any]:
    return {"conditions": [PLACED, {"type": "PodReadyToStartContainers", "status": status}]}


@pytest.mark.parametrize(
    ("status", "said"),
    [
        pytest.param({"conditions": []}, "is not placed on a node yet", id="nobody has looked at it"),
        pytest.param({"conditions": [PLACED]}, "is taken up by its node", id="placed"),
        pytest.param({**waiting("PodInitializing"), "conditions": [PLACED]}, ": PodInitializing", id="initialised"),
        pytest.param(
            {**waiting("ContainerCreating"), **sandbox("False")},
            ": ContainerCreating (its volumes and network are made)",
            id="no sandbox yet",
        ),
        pytest.param(
            {**waiting("ContainerCreating"), **sandbox("True")},
            ": ContainerCreating (its image is pulled)",
            id="sandbox",
        ),
        pytest.param(
            {"containerStatuses": [container_status(state={"running": {}})], "conditions": [PLACED]}, "runs", id="runs"
        ),
    ],
)
def test_a_pod_that_starts_is_told_with_how_far_it_is(status: dict[str, Any], said: str) -> None:
    told = describe_start(pod("worker", ready=False, **status))
    assert told.startswith("tiny-worker-x1")
    assert told.endswith(said)


@pytest.mark.parametrize(
    ("component", "field"),
    [("worker", "spec.workers.resources.limits.memory"), ("loader", "spec.services.loader.resources.limits.memory")],
)
def test_memory_that_was_too_little_is_told_with_the_field_to_change(component: str, field: str) -> None:
    trouble = diagnose(pod(component, ready=False, **ended("state", reason="OOMKilled", exitCode=137)))
    assert trouble is not None
    assert f"raise {field}" in trouble.message
    assert ("spec.experts.memory" in trouble.message) == (component == "worker")


def test_a_ready_pod_is_not_blamed_for_what_is_past() -> None:
    past = ended("lastState", restarts=9, reason="OOMKilled")
    assert diagnose(pod("worker", **past)) is None


def test_a_pod_that_is_told_to_go_is_nobodys_trouble() -> None:
    going = pod("worker", ready=False, **waiting("ErrImagePull"))
    assert diagnose({**going, "metadata": {**going["metadata"], "deletionTimestamp": "now"}}) is None


def test_a_sidecar_that_crashes_is_found_too() -> None:
    well = container_status(ready=True, state={"running": {}})
    ill = container_status(name="sidecar", restartCount=4, lastState={"terminated": {"exitCode": 2, "message": "no"}})
    trouble = diagnose(pod("worker", ready=False, containerStatuses=[well, ill]))
    assert trouble is not None
    assert "sidecar" in trouble.message


def test_last_words_are_cut_to_one_line_with_beginning_and_end() -> None:
    words = "Traceback\n" + "  frame\n" * 500 + "OSError: no space left"
    trouble = diagnose(pod("worker", ready=False, **ended("lastState", restarts=2, message=words)))
    assert trouble is not None
    assert "\n" not in trouble.message
    assert len(trouble.message) < 600
    assert trouble.message.endswith("OSError: no space left")
