"""What a person would look at first when something on the cluster is wrong, as text for a failed test's report."""

from __future__ import annotations

import json

import kube as k
from release import OPERATOR_SELECTOR, Release

LOG_LINES = 60


def _said(kube: k.Kube, *arguments: str) -> str:
    try:
        return kube.kubectl(*arguments, seconds=30)
    except AssertionError as error:
        return f"{error}\n"


def describe_namespace(kube: k.Kube) -> str:
    parts = [
        _said(kube, "get", "moed,deployments,pods,services,persistentvolumeclaims", "--output=wide"),
        *(_describe_status(body) for body in kube.select("moed")),
        _said(kube, "get", "events", "--sort-by=.lastTimestamp"),
        *(_describe_pod(kube, pod) for pod in kube.select("pods")),
    ]
    return "\n".join(parts)


def describe_operator(release: Release) -> str:
    pods = _said(release.system, "get", "pods", "--output=wide")
    return pods + _said(release.system, "logs", f"--selector={OPERATOR_SELECTOR}", "--tail=100", "--prefix")


def _describe_status(resource: k.Body) -> str:
    return f"status of {k.name_of(resource)}: {json.dumps(resource.get('status', {}), indent=1)}"


def _describe_pod(kube: k.Kube, pod: k.Body) -> str:
    name = k.name_of(pod)
    states = [one.get("state") for one in pod.get("status", {}).get("containerStatuses", [])]
    restarts = sum(one.get("restartCount", 0) for one in pod.get("status", {}).get("containerStatuses", []))
    log = _said(kube, "logs", name, f"--tail={LOG_LINES}")
    before = _said(kube, "logs", name, "--previous", f"--tail={LOG_LINES}") if restarts else ""
    return f"--- pod {name}: {json.dumps(states)}, {restarts} restarts\n{before}{log}"
