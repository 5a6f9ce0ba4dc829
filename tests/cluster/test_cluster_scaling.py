"""What scales the workers from outside: `kubectl scale`, and an autoscaler over the resource's scale subresource.

No metrics API is needed: the autoscaler holds a number of pods between its bounds without one.
"""

from __future__ import annotations

import asyncio
import json
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import kube as k
import pytest
import yaml
from asking import Load, load
from bed_access import BED_STATE, is_our_bed, reach

pytestmark = pytest.mark.cluster

HPA = Path(__file__).resolve().parents[2] / "charts" / "examples" / "hpa.yaml"
NAME = "autoscaled"
SMALL = {"resources": {"requests": {"cpu": "100m"}}}
SERVER_SIDE = ("--server-side", "--field-manager=owner")
SYNC_SECONDS = 60.0
"""The autoscaler looks every 15 s."""
ANSWER_SECONDS = 90.0


def autoscaler() -> k.Body:
    """The chart's example, for our resource and for two workers exactly."""
    body: k.Body = yaml.safe_load(HPA.read_text())
    body["metadata"]["name"] = body["spec"]["scaleTargetRef"]["name"] = NAME
    body["spec"] |= {"minReplicas": 2, "maxReplicas": 2}
    return body


@pytest.fixture(scope="module")
def autoscaled(kube: k.Kube) -> k.Kube:
    """Applied without a number of workers, which is then the autoscaler's: it made two of one."""
    kube.apply(k.demo(NAME, workers=SMALL), options=SERVER_SIDE)
    kube.wait_ready(NAME)
    kube.wait_pods(NAME, "worker", 1)
    kube.apply(autoscaler())
    settle(kube)
    return kube


def settle(kube: k.Kube) -> None:
    k.wait_until(lambda: wanted(kube), lambda num: num == 2, seconds=SYNC_SECONDS, what="two workers wanted")
    kube.wait_pods(NAME, "worker", 2)
    kube.wait_ready(NAME)


def wanted(kube: k.Kube) -> int:
    return int(kube.get("moed", NAME)["spec"]["workers"]["replicas"])


def wait_status(kube: k.Kube, is_so: Callable[[k.Body], object], *, what: str) -> k.Body:
    return k.wait_until(
        lambda: kube.get("hpa", NAME).get("status", {}), is_so, seconds=SYNC_SECONDS, what=f"the autoscaler: {what}"
    )


def test_an_autoscaler_reads_and_writes_the_scale(autoscaled: k.Kube) -> None:
    status = wait_status(autoscaled, lambda status: status.get("currentReplicas") == 2, what="two workers seen")
    assert status["desiredReplicas"] == 2
    conditions = {one["type"]: one for one in status["conditions"]}
    assert conditions["AbleToScale"]["status"] == "True", conditions


@pytest.mark.skipif(not is_our_bed(), reason="needs the API server's own log")
def test_an_autoscaler_asks_for_the_metrics_of_the_workers_pods(autoscaled: k.Kube) -> None:
    """The request fails for want of a metrics API; its selector is what the autoscaler was told."""
    (selector, *others) = k.wait_until(
        lambda: asked_selectors(autoscaled.namespace), len, seconds=SYNC_SECONDS, what="a request for metrics"
    )
    assert others == []
    standing = [pod for pod in autoscaled.select("pods", selector) if "deletionTimestamp" not in pod["metadata"]]
    assert {k.name_of(pod) for pod in standing} == {k.name_of(pod) for pod in autoscaled.pods(NAME, "worker")}


def asked_selectors(namespace: str) -> list[str]:
    """Of all requests for the use of a namespace's pods."""
    path = f"/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods?"
    with (BED_STATE / "log" / "audit").open() as log:
        addresses = {json.loads(line)["requestURI"] for line in log if path in line}
    queries = [urllib.parse.parse_qs(urllib.parse.urlsplit(address).query) for address in addresses]
    return sorted({query["labelSelector"][0] for query in queries})


def test_the_operator_leaves_the_number_that_an_autoscaler_set(autoscaled: k.Kube) -> None:
    uids = {pod["metadata"]["uid"] for pod in autoscaled.pods(NAME, "worker")}
    for _ in range(3):
        autoscaled.wait_operator_worked(NAME)
        assert wanted(autoscaled) == 2
        assert autoscaled.get("deployment", f"{NAME}-worker")["spec"]["replicas"] == 2
    assert {pod["metadata"]["uid"] for pod in autoscaled.pods(NAME, "worker")} == uids


def test_who_applies_the_resource_again_leaves_the_number_that_an_autoscaler_set(autoscaled: k.Kube) -> None:
    autoscaled.apply(k.demo(NAME, workers=SMALL), options=SERVER_SIDE)
    assert wanted(autoscaled) == 2
    settle(autoscaled)


def test_an_autoscaler_takes_back_what_is_above_its_maximum(autoscaled: k.Kube) -> None:
    autoscaled.kubectl("scale", f"moed/{NAME}", "--replicas=3")
    settle(autoscaled)
    told = [event["message"] for event in autoscaled.select("events") if event["reason"] == "SuccessfulRescale"]
    assert any("above Spec.MaxReplicas" in message for message in told), told


async def test_kubectl_scale_takes_workers_from_one_to_three_and_back_without_a_failed_request(
    kube: k.Kube, figure: Callable[[str, str], None]
) -> None:
    manifest = k.demo("scaled", workers=SMALL)
    kube.apply(manifest)
    kube.wait_ready("scaled")
    with reach(kube, "scaled") as address:
        async with load(address, num_streams=4, num_channels=1) as streams:
            await streams.until_answered(2)
            await asyncio.to_thread(scale, kube, 3)
            await asyncio.to_thread(kube.apply, manifest)
            assert (await asyncio.to_thread(kube.get, "moed", "scaled"))["spec"]["workers"]["replicas"] == 3
            await until_all_answer(streams, 3)
            await asyncio.to_thread(scale, kube, 1)
            await streams.until_answered(4)
    figure("scaled 1 to 3 to 1", streams.describe())
    assert set(streams.codes()) == {"OK"}
    kube.delete("moed", "scaled", "--wait=false")


def scale(kube: k.Kube, num: int) -> None:
    kube.kubectl("scale", "moed/scaled", f"--replicas={num}")
    kube.wait_pods("scaled", "worker", num)
    kube.wait_ready("scaled")


async def until_all_answer(streams: Load, num_workers: int) -> None:
    async with asyncio.timeout(ANSWER_SECONDS):
        while len({one.worker_id for one in streams.outcomes if one.is_ok}) < num_workers:
            await streams.until_answered(4)
