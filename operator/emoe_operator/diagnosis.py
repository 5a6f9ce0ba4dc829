"""Why a pod does not serve: from the API server's record of it to a reason and a sentence that says what to do.

Told apart are what waits (loading, a GPU, a place) and what is broken (image, memory, a crash), because a person must
act on one and not on the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from emoe.api.names import COMPONENT_LABEL
from emoe_operator.observed import Body
from emoe_operator.wording import one_line

GPU_RESOURCES = ("nvidia.com/gpu", "nvidia.com/mig-", "amd.com/gpu")
_IMAGE_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
_CREATION_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_LOOP_RESTARTS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trouble:
    """`stuck`: waiting alone will not help. Of several, the one with the smallest `rank` names the condition."""

    reason: str
    message: str
    stuck: bool
    rank: int


def is_alive(pod: Body) -> bool:
    """Neither ended nor told to."""
    return "deletionTimestamp" not in pod["metadata"] and _status(pod).get("phase") not in ("Succeeded", "Failed")


def is_ready(pod: Body) -> bool:
    return is_alive(pod) and (_condition(pod, "Ready") or {}).get("status") == "True"


def diagnose(pod: Body) -> Trouble | None:
    """None for a pod that is ready, or that is only starting; the first cause that fits, the gravest first."""
    if is_ready(pod) or not is_alive(pod):
        return None
    if trouble := _placing(pod):
        return trouble
    containers = [*_statuses(pod, "initContainerStatuses"), *_statuses(pod, "containerStatuses")]
    found = (cause(pod, container) for cause in _CAUSES for container in containers)
    return next((trouble for trouble in found if trouble), None)


def describe_start(pod: Body) -> str:
    """How far a pod is that is not in trouble and not ready yet, with the kubelet's own word for it."""
    if (_condition(pod, "PodScheduled") or {}).get("status") != "True":
        return f"{_name(pod)} is not placed on a node yet"
    containers = [*_statuses(pod, "initContainerStatuses"), *_statuses(pod, "containerStatuses")]
    reason = next((str(said) for one in containers if (said := _state(one, "waiting").get("reason"))), "")
    if reason:
        return f"{_name(pod)}: {reason}{_what_is_made(pod, reason)}"
    return f"{_name(pod)} runs" if containers else f"{_name(pod)} is taken up by its node"


def _what_is_made(pod: Body, reason: str) -> str:
    """The kubelet has one word for a sandbox that is made and for an image that is pulled after it."""
    sandbox = _condition(pod, "PodReadyToStartContainers")
    if reason != "ContainerCreating" or sandbox is None:
        return ""
    return " (its image is pulled)" if sandbox.get("status") == "True" else " (its volumes and network are made)"


def _placing(pod: Body) -> Trouble | None:
    placed = _condition(pod, "PodScheduled")
    if placed is None or placed.get("status") != "False" or placed.get("reason") != "Unschedulable":
        return None
    said = one_line(str(placed.get("message", "")))
    if any(f"Insufficient {name}" in said for name in GPU_RESOURCES):
        message = f"{_name(pod)} waits for a GPU: free one, add a node that has one, or lower the replicas ({said})"
        return Trouble(reason="WaitingForGPU", message=message, stuck=True, rank=60)
    message = (
        f"{_name(pod)} has no node to run on: lower what it asks for, add a node, or change its placement ({said})"
    )
    return Trouble(reason="Unschedulable", message=message, stuck=True, rank=50)


def _image(pod: Body, container: Body) -> Trouble | None:
    waiting = _state(container, "waiting")
    if waiting.get("reason") not in _IMAGE_REASONS:
        return None
    said = one_line(str(waiting.get("message") or waiting["reason"]))
    message = f"{_name(pod)} cannot pull {container.get('image')}: check the image's name and the pull secret ({said})"
    return Trouble(reason="ImagePullFailed", message=message, stuck=True, rank=20)


def _creation(pod: Body, container: Body) -> Trouble | None:
    waiting = _state(container, "waiting")
    if waiting.get("reason") not in _CREATION_REASONS:
        return None
    said = one_line(str(waiting.get("message") or waiting["reason"]))
    message = f"{_name(pod)} cannot be started: check the secrets and config maps that it refers to ({said})"
    return Trouble(reason="ContainerNotCreated", message=message, stuck=True, rank=30)


def _memory(pod: Body, container: Body) -> Trouble | None:
    ended = _last_end(container)
    if ended.get("reason") != "OOMKilled":
        return None
    limit = _limit(pod, container)
    message = (
        f"{_name(pod)} was killed for using more memory than its limit{limit}: raise "
        f"{_fields_of(pod)}.resources.limits.memory{_instead(pod)}"
    )
    return Trouble(reason="OutOfMemory", message=message, stuck=True, rank=10)


def _crash(pod: Body, container: Body) -> Trouble | None:
    ended, restarts = _last_end(container), int(container.get("restartCount", 0))
    if not ended or (ended.get("exitCode") == 0 and restarts < _LOOP_RESTARTS):
        return None
    loops = restarts >= _LOOP_RESTARTS or _state(container, "waiting").get("reason") == "CrashLoopBackOff"
    said = one_line(str(ended.get("message") or ended.get("reason") or "it said nothing"))
    message = (
        f"{_name(pod)}: {container['name']} ended with exit code {ended.get('exitCode')} (restarts: {restarts}); "
        f"its last words: {said}"
    )
    if loops:
        return Trouble(reason="CrashLoop", message=message, stuck=True, rank=15)
    return Trouble(reason="Restarting", message=message, stuck=False, rank=70)


_CAUSES: tuple[Callable[[Body, Body], Trouble | None], ...] = (_image, _creation, _memory, _crash)


def _last_end(container: Body) -> Mapping[str, Any]:
    """How it ended last: just now, or before its present start. Nothing for one that serves again."""
    if container.get("ready"):
        return {}
    return _state(container, "terminated") or (container.get("lastState") or {}).get("terminated") or {}


def _limit(pod: Body, container: Body) -> str:
    specs = (pod.get("spec") or {}).get("containers") or ()
    spec: Body = next((one for one in specs if one["name"] == container["name"]), {})
    limit = ((spec.get("resources") or {}).get("limits") or {}).get("memory")
    return f" of {limit}" if limit else ""


def _fields_of(pod: Body) -> str:
    """Where the spec speaks of it."""
    component = _component(pod)
    return "spec.workers" if component == "worker" else f"spec.services.{component}"


def _instead(pod: Body) -> str:
    held = "spec.experts.memory, spec.workers.maxContext or spec.workers.maxConcurrency"
    return f", or lower {held}" if _component(pod) == "worker" else ""


def _component(pod: Body) -> str:
    return str((pod["metadata"].get("labels") or {}).get(COMPONENT_LABEL, ""))


def _name(pod: Body) -> str:
    return str(pod["metadata"]["name"])


def _status(pod: Body) -> Mapping[str, Any]:
    return pod.get("status") or {}


def _condition(pod: Body, kind: str) -> Mapping[str, Any] | None:
    return next((one for one in _status(pod).get("conditions") or () if one["type"] == kind), None)


def _statuses(pod: Body, field: str) -> list[Body]:
    return list(_status(pod).get(field) or ())


def _state(container: Body, name: str) -> Mapping[str, Any]:
    return (container.get("state") or {}).get(name) or {}
