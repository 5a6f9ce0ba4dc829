"""kubectl, helm and grpcurl as a person has them, with deadlines, and what tests read out of their answers.

`Kube` is bound to one namespace. Everything waits by polling the API with a deadline; what a wait last saw is in its
error. Knows nothing of how the cluster came to be, but for `emoe.dev`'s labels and conditions.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Body = dict[str, Any]
T = TypeVar("T")

READY_SECONDS = 240.0
POLL_SECONDS = 0.25
OWNER_LABEL = "emoe.dev/moedeployment"
COMPONENT_LABEL = "app.kubernetes.io/component"
SERVICES = ("scheduler", "loader", "predictor", "worker")
CHILD_KINDS = (
    "deployments.apps,services,serviceaccounts,configmaps,persistentvolumeclaims,"
    "networkpolicies.networking.k8s.io,poddisruptionbudgets.policy,pods,replicasets.apps"
)


class CommandError(AssertionError):
    """A command that ended in failure; `message` is what a person would read."""

    def __init__(self, command: Sequence[str], message: str) -> None:
        super().__init__(f"{' '.join(command)}: {message}")
        self.message = message


def run(*command: str, stdin: str | None = None, seconds: float = 60.0) -> str:
    """The command's standard output; CommandError with its standard error when it fails or runs out of time."""
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise CommandError(command, f"still running after {seconds:g} s") from error
    if done.returncode != 0:
        raise CommandError(command, (done.stderr or done.stdout).strip())
    return done.stdout


def wait_until(look: Callable[[], T], is_so: Callable[[T], object], *, seconds: float, what: str) -> T:
    """What `look` gives as soon as `is_so` of it."""
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        if is_so(seen):
            return seen
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}; last seen: {shorten(seen)}")
        time.sleep(POLL_SECONDS)


def shorten(seen: object, limit: int = 3000) -> str:
    text = json.dumps(seen, indent=1, default=str) if isinstance(seen, dict | list) else str(seen)
    return text if len(text) <= limit else text[:limit] + " ..."


@dataclasses.dataclass(frozen=True)
class Kube:
    namespace: str

    def kubectl(self, *arguments: str, stdin: str | None = None, seconds: float = 60.0) -> str:
        return run("kubectl", f"--namespace={self.namespace}", *arguments, stdin=stdin, seconds=seconds)

    def get(self, kind: str, name: str) -> Body:
        body: Body = json.loads(self.kubectl("get", kind, name, "--output=json"))
        return body

    def find(self, kind: str, name: str) -> Body | None:
        found = self.kubectl("get", kind, name, "--output=json", "--ignore-not-found")
        return json.loads(found) if found else None

    def select(self, kinds: str, selector: str = "") -> list[Body]:
        items: list[Body] = json.loads(self.kubectl("get", kinds, "--output=json", f"--selector={selector}"))["items"]
        return items

    def apply(self, *bodies: Body, options: Sequence[str] = ()) -> str:
        """As `kubectl apply -f`; CommandError says why the API refused it."""
        documents = "\n---\n".join(json.dumps(body) for body in bodies)
        return self.kubectl("apply", "--filename=-", *options, stdin=documents)

    def refusal(self, body: Body) -> str:
        """The message with which the API refuses it."""
        try:
            self.apply(body)
        except CommandError as error:
            return error.message
        raise AssertionError(f"was accepted: {shorten(body)}")

    def patch(self, kind: str, name: str, change: Body, *, options: Sequence[str] = ()) -> None:
        self.kubectl("patch", kind, name, "--type=merge", f"--patch={json.dumps(change)}", *options)

    def delete(self, kind: str, name: str, *options: str, seconds: float = 60.0) -> None:
        self.kubectl("delete", kind, name, "--ignore-not-found", *options, seconds=seconds)

    def pods(self, resource: str, component: str) -> list[Body]:
        """Those that are not on their way out."""
        pods = self.select("pods", f"{OWNER_LABEL}={resource},{COMPONENT_LABEL}={component}")
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def children(self, resource: str) -> list[str]:
        """Kind/name of everything that carries the resource's label, pods and replica sets too."""
        found = self.select(CHILD_KINDS, f"{OWNER_LABEL}={resource}")
        return sorted(f"{body['kind']}/{body['metadata']['name']}" for body in found)

    def conditions(self, resource: str) -> dict[str, Body]:
        body = self.find("moed", resource) or {}
        return {one["type"]: one for one in body.get("status", {}).get("conditions", [])}

    def wait_condition(self, resource: str, kind: str, *, seconds: float = READY_SECONDS, **fields: object) -> Body:
        """The condition once it has these fields, such as status="True" or reason="Unschedulable"."""
        seen = wait_until(
            lambda: self.conditions(resource),
            lambda conditions: fields.items() <= conditions.get(kind, {}).items(),
            seconds=seconds,
            what=f"{resource}'s condition {kind} with {fields}",
        )
        return seen[kind]

    def wait_ready(self, resource: str, *, seconds: float = READY_SECONDS) -> Body:
        """The resource once it is Ready as of its newest spec."""
        return wait_until(lambda: self.get("moed", resource), is_ready, seconds=seconds, what=f"{resource} is Ready")

    def wait_operator_worked(self, resource: str) -> None:
        """The operator that runs now has looked at all of the resource: it put a label back."""
        self.kubectl("label", f"service/{resource}", "app.kubernetes.io/part-of=else", "--overwrite")
        wait_until(
            lambda: self.get("service", resource)["metadata"]["labels"]["app.kubernetes.io/part-of"],
            lambda now: now == "emoe",
            seconds=60,
            what=f"the operator putting a label of {resource} back",
        )

    def wait_gone(self, resource: str, *, seconds: float) -> float:
        """Seconds until none of its children is left."""
        started = time.monotonic()
        wait_until(
            lambda: self.children(resource), lambda left: not left, seconds=seconds, what=f"{resource}'s children gone"
        )
        return time.monotonic() - started

    def wait_pods(self, resource: str, component: str, num: int, *, seconds: float = READY_SECONDS) -> list[Body]:
        """So many pods, all ready, and no other."""
        return wait_until(
            lambda: self.pods(resource, component),
            lambda pods: len(pods) == num and all(is_pod_ready(pod) for pod in pods),
            seconds=seconds,
            what=f"{num} pods of {resource}'s {component} ready",
        )


def is_ready(resource: Body) -> bool:
    """As of its newest spec."""
    conditions: list[Body] = resource.get("status", {}).get("conditions", [])
    ready = next((one for one in conditions if one["type"] == "Ready"), {})
    return ready.get("status") == "True" and ready.get("observedGeneration") == resource["metadata"]["generation"]


def is_pod_ready(pod: Body) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def name_of(body: Body) -> str:
    return str(body["metadata"]["name"])


def demo(name: str = "demo", **spec: Any) -> Body:
    """The smallest useful resource: the shipped model, a quarter of its experts; fields of `spec` go over these."""
    body: Body = {
        "apiVersion": "emoe.dev/v1alpha1",
        "kind": "MoEDeployment",
        "metadata": {"name": name},
        "spec": {"model": {"source": "demo://"}, "experts": {"memory": "25%"}},
    }
    body["spec"].update(spec)
    return body


def message_of(condition: Body) -> str:
    return f"{condition.get('reason')}: {condition.get('message')}"
