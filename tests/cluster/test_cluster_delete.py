"""`kubectl delete moed`: nothing is left but what was to be kept, whether the operator is there or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import kube as k
import pytest
from release import Release

pytestmark = pytest.mark.cluster

IDLE_SECONDS = 30.0


@pytest.fixture
def no_operator(release: Release) -> Iterator[Callable[[], None]]:
    """A function that takes the operator away; it is back after the test."""
    yield lambda: release.scale_operator(0)
    release.scale_operator(1)


def test_an_idle_resource_is_gone_with_all_its_children_in_half_a_minute(
    kube: k.Kube, figure: Callable[[str, str], None]
) -> None:
    kube.apply(k.demo("gone"))
    kube.wait_ready("gone")
    assert len(kube.children("gone")) > 8
    kube.delete("moed", "gone", "--wait=false")
    seconds = kube.wait_gone("gone", seconds=IDLE_SECONDS)
    figure("delete of an idle resource, until no child is left", f"{seconds:.1f} s")
    assert kube.find("moed", "gone") is None


def test_one_whose_workers_never_started_goes_at_once(kube: k.Kube) -> None:
    kube.apply(k.demo("early"))
    k.wait_until(lambda: kube.children("early"), len, seconds=30, what="first children")
    kube.delete("moed", "early", "--wait=false")
    kube.wait_gone("early", seconds=IDLE_SECONDS)


def test_it_goes_as_fast_when_the_operator_is_down(kube: k.Kube, no_operator: Callable[[], None]) -> None:
    kube.apply(k.demo("orphan"))
    kube.wait_ready("orphan")
    no_operator()
    kube.delete("moed", "orphan", "--wait=false")
    kube.wait_gone("orphan", seconds=IDLE_SECONDS)


def test_a_retained_cache_stays_and_another_does_not(kube: k.Kube) -> None:
    source = {"source": "https://models.invalid/tiny"}
    kube.apply(
        k.demo("keeps", model=source, suspend=True, cache={"size": "1Gi", "retain": True}),
        k.demo("drops", model=source, suspend=True, cache={"size": "1Gi", "retain": False}),
    )
    for name in ("keeps", "drops"):
        k.wait_until(
            lambda name=name: kube.find("persistentvolumeclaim", f"{name}-cache"),  # type: ignore[misc]
            lambda claim: claim is not None,
            seconds=30,
            what=f"{name}'s claim",
        )
        kube.delete("moed", name)
    kube.wait_gone("drops", seconds=IDLE_SECONDS)
    k.wait_until(
        lambda: kube.children("keeps"),
        lambda left: left == ["PersistentVolumeClaim/keeps-cache"],
        seconds=IDLE_SECONDS,
        what="only the cache is left",
    )


def test_a_second_one_of_the_same_name_takes_the_retained_cache_over(kube: k.Kube) -> None:
    wanted = k.demo(
        "again", model={"source": "https://models.invalid/tiny"}, suspend=True, cache={"size": "1Gi", "retain": True}
    )
    uids = []
    for _ in range(2):
        kube.apply(wanted)
        claim = k.wait_until(
            lambda: kube.find("persistentvolumeclaim", "again-cache"),
            lambda claim: claim is not None,
            seconds=30,
            what="the claim",
        )
        assert claim is not None
        uids.append(claim["metadata"]["uid"])
        kube.wait_condition("again", "SpecAccepted", status="True", seconds=30)
        kube.delete("moed", "again")
    assert uids[0] == uids[1]
