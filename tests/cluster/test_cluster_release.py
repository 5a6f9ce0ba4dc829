"""The chart's own life: `helm test`, uninstall, another release over what the first one left, two operators."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import kube as k
import pytest
from asking import PROMPTS, ask_once
from bed_access import crash, reach
from release import SYSTEM_NAMESPACE, Release

pytestmark = pytest.mark.cluster

TAKEOVER_SECONDS = 20.0


def test_helm_test_makes_a_model_asks_it_and_removes_it(
    kube: k.Kube, release: Release, figure: Callable[[str, str], None]
) -> None:
    started = time.monotonic()
    told = k.run("helm", "test", release.name, f"--namespace={SYSTEM_NAMESPACE}", "--timeout=5m", "--logs", seconds=330)
    figure("helm test", f"{time.monotonic() - started:.1f} s")
    assert "Phase:          Succeeded" in told, told
    assert json.loads(release.system.kubectl("get", "moed", "--output=json"))["items"] == []


@pytest.fixture
def restored(release: Release) -> Iterator[None]:
    """Whatever the test does, the session's release is installed after it."""
    yield
    if "emoe2" in k.run("helm", "list", "--short", f"--namespace={SYSTEM_NAMESPACE}").split():
        Release("emoe2").uninstall()
    release.install("--take-ownership")


async def test_uninstall_keeps_type_and_resources_and_another_release_takes_them_over(
    kube: k.Kube, release: Release, restored: None
) -> None:
    kube.apply(k.demo("outlives"))
    kube.wait_ready("outlives")
    workers = {pod["metadata"]["uid"] for pod in kube.pods("outlives", "worker")}
    told = release.uninstall()
    assert "moedeployments.emoe.dev" in told, told
    assert kube.get("moed", "outlives")["status"]["workers"]["ready"] == 1
    with reach(kube, "outlives") as address:
        assert (await ask_once(address, PROMPTS[0])).is_ok
        Release("emoe2").install("--take-ownership")
        kube.patch("moed", "outlives", {"spec": {"services": {"scheduler": {"replicas": 2}}}})
        kube.wait_pods("outlives", "scheduler", 2)
        kube.wait_ready("outlives")
        assert (await ask_once(address, PROMPTS[0])).is_ok
    assert {pod["metadata"]["uid"] for pod in kube.pods("outlives", "worker")} == workers


def test_a_new_operator_image_restarts_no_worker(kube: k.Kube, release: Release, restored: None) -> None:
    """The images are pinned in the status until the spec changes."""
    kube.apply(k.demo("pinned"))
    before = kube.wait_ready("pinned")["status"]["images"]
    pods = {k.name_of(pod) for component in k.SERVICES for pod in kube.pods("pinned", component)}
    release.install("--set-string=image.worker.tag=another", "--set-string=image.control.tag=another")
    kube.kubectl("annotate", "moed/pinned", "somebody.example/poke=1")
    kube.kubectl("label", "service/pinned", "app.kubernetes.io/part-of=else", "--overwrite")
    k.wait_until(
        lambda: kube.get("service", "pinned")["metadata"]["labels"]["app.kubernetes.io/part-of"],
        lambda now: now == "emoe",
        seconds=60,
        what="the new operator at work",
    )
    assert kube.get("moed", "pinned")["status"]["images"] == before
    assert {k.name_of(pod) for component in k.SERVICES for pod in kube.pods("pinned", component)} == pods


def test_the_second_operator_takes_over_when_the_first_is_killed(
    kube: k.Kube, release: Release, figure: Callable[[str, str], None]
) -> None:
    release.scale_operator(2)
    try:
        lease = release.system.select("leases")[0]
        leader = next(pod for pod in release.operator_pods() if k.name_of(pod) in lease["spec"]["holderIdentity"])
        crash(release.system, leader)
        started = time.monotonic()
        k.wait_until(
            lambda: release.system.get("lease", k.name_of(lease))["spec"],
            lambda spec: spec["holderIdentity"] != lease["spec"]["holderIdentity"],
            seconds=TAKEOVER_SECONDS,
            what="another leader",
        )
        kube.apply(k.demo("after", suspend=True))
        k.wait_until(lambda: kube.children("after"), len, seconds=TAKEOVER_SECONDS, what="children from the new leader")
        figure("operator killed, until the other one works", f"{time.monotonic() - started:.1f} s")
        kube.delete("moed", "after", "--wait=false")
    finally:
        release.scale_operator(1)
