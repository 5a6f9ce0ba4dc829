"""A hundred suspended resources: how soon each has its children, and what the operator takes for them."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import kube as k
import pytest
from bed_access import BED_STATE, cpu_seconds, is_our_bed, resident_bytes
from recorder import Recording, recording
from release import SYSTEM_NAMESPACE, Release

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

NUM_RESOURCES = 100
APPLY_SECONDS = 120.0
IDLE_SECONDS = 60.0
MAX_P99_SECONDS = 30.0
LAST_CHILD = "scheduler"
"""The operator applies the scheduler's Deployment after all other children."""


def seconds_to_children(born: Recording, made: Recording, name: str) -> float:
    """From a resource's first sight to its last child's, by this client's own watches."""
    started, done = born.first_seen(name), made.first_seen(f"{name}-{LAST_CHILD}")
    assert started is not None
    assert done is not None
    return done - started


def describe(seconds: list[float]) -> str:
    cuts = statistics.quantiles(seconds, n=100)
    return f"p50 {cuts[49]:.2f} s, p99 {cuts[98]:.2f} s"


def num_requests(account: str, since: str) -> dict[str, int]:
    """The operator's by verb and resource, from the API server's own log. Leases do not count."""
    counts: dict[str, int] = {}
    for line in (BED_STATE / "log" / "audit").read_text().splitlines():
        entry = json.loads(line)
        resource = entry.get("objectRef", {}).get("resource", "")
        username = entry["user"].get("username")  # none in a request whose credentials are refused
        if username != account or resource == "leases" or entry["stageTimestamp"] < since:
            continue
        if entry["stage"] == "ResponseComplete":
            key = f"{entry['verb']} {resource}"
            counts[key] = counts.get(key, 0) + 1
    return counts


def now_text() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())


def test_a_resource_alone_has_its_children_at_once(kube: k.Kube, figure: Callable[[str, str], None]) -> None:
    with recording(kube, "moed") as born, recording(kube, "deployments") as made:
        kube.apply(k.demo("alone", suspend=True))
        k.wait_until(
            lambda: made.first_seen(f"alone-{LAST_CHILD}"), lambda at: at is not None, seconds=30, what="its children"
        )
    seconds = seconds_to_children(born, made, "alone")
    figure("apply to children, 1 resource", f"{seconds:.2f} s")
    assert seconds < MAX_P99_SECONDS
    kube.delete("moed", "alone")


def test_a_hundred_have_their_children_soon_and_cost_nothing_when_idle(
    kube: k.Kube, release: Release, figure: Callable[[str, str], None]
) -> None:
    names = [f"many-{index:03d}" for index in range(NUM_RESOURCES)]
    with recording(kube, "moed") as born, recording(kube, "deployments") as made:
        kube.apply(*(k.demo(name, suspend=True) for name in names))
        k.wait_until(
            lambda: [name for name in names if made.first_seen(f"{name}-{LAST_CHILD}") is None],
            lambda missing: not missing,
            seconds=APPLY_SECONDS,
            what="all children of all",
        )
    taken = sorted(seconds_to_children(born, made, name) for name in names)
    figure(f"apply to children, {NUM_RESOURCES} resources", describe(taken))
    assert statistics.quantiles(taken, n=100)[98] < MAX_P99_SECONDS
    for name in names:
        kube.wait_condition(name, "Ready", reason="Suspended", seconds=30)
    if is_our_bed():
        check_idle(release, figure)


def check_idle(release: Release, figure: Callable[[str, str], None]) -> None:
    """A minute in which nothing changes."""
    (pod,) = release.operator_pods()
    account = f"system:serviceaccount:{SYSTEM_NAMESPACE}:{pod['spec']['serviceAccountName']}"
    since, cpu = now_text(), cpu_seconds(pod)
    time.sleep(IDLE_SECONDS)
    used = cpu_seconds(pod) - cpu
    counts = num_requests(account, since)
    changes = {key: num for key, num in counts.items() if not key.startswith("watch ")}
    hourly = sum(changes.values()) * 3600 / IDLE_SECONDS / NUM_RESOURCES
    figure("operator, 100 idle resources: memory", f"{resident_bytes(pod) / 2**20:.0f} MiB")
    figure("operator, 100 idle resources: CPU", f"{used / IDLE_SECONDS:.2%} of one")
    figure("operator, idle: requests a resource an hour beside its lease", f"{hourly:.2f}")
    assert changes == {}, "an idle operator asks the API server for something"
    made = num_requests(account, since="")
    assert made.get("patch deployments", 0) >= NUM_RESOURCES, "the log does not show the operator's requests"
