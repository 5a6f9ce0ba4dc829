"""The chart's own life: `helm test`, an upgrade, uninstall, another release over what one left, two operators."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import kube as k
import pytest
import yaml
from asking import PROMPTS, ask_once, load
from bed_access import BED_STATE, crash, is_our_bed, reach
from release import CHART, SYSTEM_NAMESPACE, Release, package_older

pytestmark = pytest.mark.cluster

TAKEOVER_SECONDS = 20.0
OLDER_VERSION = "0.0.9"
NUM_STREAMS = 50
UPGRADED = {
    "experts": {"memory": "50%", "missPolicy": "load"},
    "workers": {"resources": {"requests": {"cpu": "100m"}}},
}
AGAIN = "-again"


def test_helm_test_makes_a_model_asks_it_and_removes_it(
    kube: k.Kube, release: Release, figure: Callable[[str, str], None]
) -> None:
    started = time.monotonic()
    told = k.run("helm", "test", release.name, f"--namespace={SYSTEM_NAMESPACE}", "--timeout=5m", "--logs", seconds=330)
    figure("helm test", f"{time.monotonic() - started:.1f} s")
    assert "Phase:          Succeeded" in told, told
    assert json.loads(release.system.kubectl("get", "moed", "--output=json"))["items"] == []


@pytest.mark.parametrize("name", ["demo", "olmoe", "s3-exact", "hpa"])
def test_the_charts_examples_are_taken(kube: k.Kube, name: str) -> None:
    kube.kubectl("apply", "--dry-run=server", f"--filename={CHART.parent / 'examples' / name}.yaml")


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
    kube.delete("moed", "outlives", "--wait=false")


def test_a_new_operator_image_restarts_no_worker(kube: k.Kube, release: Release, restored: None) -> None:
    """The images are pinned in the status until the spec changes."""
    kube.apply(k.demo("pinned"))
    before = kube.wait_ready("pinned")["status"]["images"]
    pods = {k.name_of(pod) for component in k.SERVICES for pod in kube.pods("pinned", component)}
    release.install("--set-string=image.worker.tag=another", "--set-string=image.control.tag=another")
    kube.kubectl("annotate", "moed/pinned", "somebody.example/poke=1")
    wait_for_work(release, kube, "pinned")
    assert kube.get("moed", "pinned")["status"]["images"] == before
    assert {k.name_of(pod) for component in k.SERVICES for pod in kube.pods("pinned", component)} == pods
    kube.delete("moed", "pinned", "--wait=false")


def wait_for_work(release: Release, kube: k.Kube, resource: str) -> None:
    """By the operator that runs now: one that is going might still put a label back."""
    k.wait_until(
        lambda: release.system.select("leases")[0]["spec"]["holderIdentity"],
        lambda holder: any(k.name_of(pod) in holder for pod in release.operator_pods()),
        seconds=60,
        what="an operator that runs is the leader",
    )
    kube.wait_operator_worked(resource)


@pytest.fixture
def upgraded(kube: k.Kube, release: Release, restored: None, tmp_path: Path) -> k.Kube:
    """An older version of the chart is installed, and a resource that is Ready by it."""
    release.uninstall()
    older = package_older(tmp_path, version=OLDER_VERSION, without_column="Hit")
    dataclasses.replace(release, chart=older).install()
    kube.apply(k.demo("upgraded", **UPGRADED))
    kube.wait_ready("upgraded")
    return kube


async def test_an_upgrade_under_load_fails_no_request_and_restarts_nothing_until_the_spec_changes(
    upgraded: k.Kube, other_names: list[str], release: Release, figure: Callable[[str, str], None]
) -> None:
    before, images = runs_of(upgraded), images_of(upgraded)
    assert "HIT" not in columns_of(upgraded)
    with reach(upgraded, "upgraded") as address:
        async with load(address, num_streams=NUM_STREAMS) as streams:
            await streams.until_answered(NUM_STREAMS)
            started = time.monotonic()
            await asyncio.to_thread(release.install, *other_names)
            figure(f"helm upgrade under {NUM_STREAMS} streams", f"{time.monotonic() - started:.1f} s")
            await asyncio.to_thread(wait_for_work, release, upgraded, "upgraded")
            await streams.until_answered(NUM_STREAMS)
            assert await asyncio.to_thread(runs_of, upgraded) == before
            assert await asyncio.to_thread(images_of, upgraded) == images
            assert "HIT" in await asyncio.to_thread(columns_of, upgraded)
            await asyncio.to_thread(roll, upgraded)
            assert set((await asyncio.to_thread(images_of, upgraded)).values()).isdisjoint(images.values())
            await streams.until_answered(NUM_STREAMS)
    after = {run.pod for run in runs_of(upgraded)}
    assert not after & {run.pod for run in before}
    figure("chart upgraded, then all pods replaced", streams.describe())
    assert set(streams.codes()) == {"OK"}
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    assert release.history() == [(1, "superseded", f"emoe-{OLDER_VERSION}"), (2, "deployed", f"emoe-{version}")]


@dataclasses.dataclass(frozen=True)
class Run:
    pod: str
    num_restarts: int


def runs_of(kube: k.Kube) -> set[Run]:
    pods = [pod for component in k.SERVICES for pod in kube.pods("upgraded", component)]
    return {Run(k.name_of(pod), pod["status"]["containerStatuses"][0]["restartCount"]) for pod in pods}


def images_of(kube: k.Kube) -> dict[str, str]:
    images = kube.get("moed", "upgraded")["status"]["images"]
    return {"scheduler": images["control"], "worker": images["worker"]}


def columns_of(kube: k.Kube) -> list[str]:
    return kube.kubectl("get", "moed", "upgraded").splitlines()[0].split()


def roll(kube: k.Kube) -> None:
    """Changes the spec; the new operator replaces every pod by one of its own images."""
    kube.patch("moed", "upgraded", {"spec": {"experts": {"memory": "30%"}}})
    kube.wait_ready("upgraded")
    for component in k.SERVICES:
        kube.wait_pods("upgraded", component, 1)
    for component, image in images_of(kube).items():
        (pod,) = kube.pods("upgraded", component)
        assert pod["spec"]["containers"][0]["image"] == image


@pytest.fixture
def other_names(upgraded: k.Kube) -> Iterator[list[str]]:
    """helm's options for the same images under other names: a tag that our bed's node is told of, else the digest."""
    components = {"control": "scheduler", "worker": "worker"}
    pods = {image: upgraded.pods("upgraded", component)[0] for image, component in components.items()}
    if not is_our_bed():
        pulled = {image: pod["status"]["containerStatuses"][0]["imageID"] for image, pod in pods.items()}
        yield [f"--set=image.{image}.digest={name.rpartition('@')[2]}" for image, name in pulled.items()]
        return
    names = {image: pod["spec"]["containers"][0]["image"] for image, pod in pods.items()}
    for name in names.values():
        on_node("tag", "--force", name, name + AGAIN)
    yield [f"--set-string=image.{image}.tag={name.rpartition(':')[2]}{AGAIN}" for image, name in names.items()]
    upgraded.delete("moed", "upgraded", "--wait=false")
    on_node("rm", *(name + AGAIN for name in names.values()))


def on_node(*arguments: str) -> None:
    k.run("ctr", f"--address={BED_STATE}/ctd/c.sock", "--namespace=k8s.io", "images", *arguments)


def leader_of(release: Release) -> tuple[k.Body, k.Body]:
    """The lease and the pod that holds it; the last holder may have just been replaced, and its lease still run."""

    def look() -> list[tuple[k.Body, k.Body]]:
        return [
            (lease, pod)
            for lease in release.system.select("leases")
            for pod in release.operator_pods()
            if k.name_of(pod) in (lease["spec"].get("holderIdentity") or "")
        ]

    return k.wait_until(look, len, seconds=TAKEOVER_SECONDS, what="a leader among the operators")[0]


def test_the_second_operator_takes_over_when_the_first_is_killed(
    kube: k.Kube, release: Release, figure: Callable[[str, str], None]
) -> None:
    release.scale_operator(2)
    try:
        lease, leader = leader_of(release)
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
