"""The rest of the status: residency, plan, counts, address, images; and when it is worth a request to write it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from operator_cases import COMPONENTS, MIB, observed, plan, pod, resource, settings, standing

from emoe.api.status import Status
from emoe_operator.observed import Observed, WorkerView
from emoe_operator.plan import plan_children
from emoe_operator.status import build_status, worth_patching

ALL_PODS = tuple(pod(one) for one in COMPONENTS)


def worker(name: str = "tiny-worker-x1", **fields: Any) -> WorkerView:
    return WorkerView(
        **{
            "name": name,
            "ready": True,
            "num_resident": 14,
            "num_slots": 14,
            "slot_bytes": MIB,
            "num_hits": 90,
            "num_choices": 100,
            **fields,
        }
    )


def running(**fields: Any) -> Observed:
    return observed(**{"children": standing(plan()), "pods": ALL_PODS, "workers": (worker(),), **fields})


def status_of(seen: Observed, **fields: Any) -> dict[str, Any]:
    asked = resource(**fields)
    return build_status(asked, seen, plan_children(asked, seen, settings()), (), settings())


def test_a_status_is_what_the_api_takes() -> None:
    status = status_of(running())
    assert Status.model_validate(status).to_dict() == status


def test_residency_is_told_worker_by_worker() -> None:
    assert status_of(running())["residency"] == {
        "summary": "14/64",
        "hitRatio": "0.90",
        "workers": [
            {
                "name": "tiny-worker-x1",
                "ready": True,
                "residentExperts": 14,
                "residentBytes": 14 * MIB,
                "hitRatio": "0.90",
            }
        ],
    }


def test_the_summary_is_of_the_worker_with_the_fewest_and_the_ratio_of_all() -> None:
    workers = (worker("b", num_resident=3, num_hits=0, num_choices=300), worker("a"))
    residency = status_of(running(workers=workers))["residency"]
    assert (residency["summary"], residency["hitRatio"]) == ("3/64", "0.22")
    assert [one["name"] for one in residency["workers"]] == ["a", "b"]


def test_no_more_than_a_bounded_number_of_workers_is_listed() -> None:
    many = tuple(worker(f"w{index:03d}", num_resident=index) for index in range(100))
    residency = status_of(running(workers=many))["residency"]
    assert len(residency["workers"]) == 32
    assert residency["summary"] == "0/64"


RATIOS = [(0, 0, None), (999, 1000, "0.99"), (1000, 1000, "1.00"), (5, 100, "0.05")]


@pytest.mark.parametrize(("hits", "choices", "ratio"), RATIOS)
def test_a_hit_ratio_of_one_is_said_of_no_miss_at_all(hits: int, choices: int, ratio: str | None) -> None:
    residency = status_of(running(workers=(worker(num_hits=hits, num_choices=choices),)))["residency"]
    assert residency.get("hitRatio") == ratio


def test_residency_stands_while_only_the_operator_starts_again() -> None:
    before = status_of(running())
    unheard = running(model=None, workers=())
    assert status_of(unheard, status=before)["residency"] == before["residency"]
    no_loader = tuple(one for one in ALL_PODS if "loader" not in one["metadata"]["name"])
    assert "residency" not in status_of(running(model=None, workers=(), pods=no_loader), status=before)


def test_workers_that_the_loader_has_no_more_are_not_told_of() -> None:
    before = status_of(running())
    assert "residency" not in status_of(running(workers=()), status=before)


def test_the_plan_says_what_the_memory_buys() -> None:
    said = status_of(running())["plan"]
    assert (said["slots"], said["totalExperts"], said["slotBytes"]) == (16, 64, MIB)
    assert said["workerMemoryBytes"] > said["residentBytes"] + said["baseBytes"] + said["kvBytes"]


def test_scale_finds_replicas_and_selector() -> None:
    status = status_of(running())
    assert (status["replicas"], status["workers"]) == (1, {"replicas": 1, "ready": 1})
    assert status["selector"] == "app.kubernetes.io/component=worker,emoe.dev/moedeployment=tiny"


def test_scale_counts_nothing_before_there_are_workers() -> None:
    status = status_of(observed(model=None))
    assert (status["replicas"], status["workers"]) == (0, {"replicas": 0, "ready": 0})


def test_the_address_is_the_front_doors() -> None:
    spec = {"service": {"port": 8443}}
    assert status_of(running(), spec={"model": {"source": "demo://"}, **spec})["address"] == "tiny.apps.svc:8443"


def test_the_images_are_said_with_the_generation_that_they_were_chosen_for() -> None:
    images = status_of(running(), generation=3)["images"]
    assert images == {"control": "emoe/control:1", "worker": "emoe/worker:1", "generation": 3}


def changed(status: dict[str, Any], *path: Any, to: Any) -> dict[str, Any]:
    copied = copy.deepcopy(status)
    place = copied
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = to
    return copied


MOVED = {
    "bytes": (("model", "bytesDone"), 5),
    "residents": (("residency", "summary"), "15/64"),
    "a worker's residents": (("residency", "workers", 0, "residentExperts"), 15),
    "a message": (("conditions", 3, "message"), "26% fetched"),
}
HAPPENED = {
    "a status": (("conditions", 0, "status"), "Unknown"),
    "a reason": (("conditions", 0, "reason"), "Other"),
    "the generation": (("observedGeneration",), 2),
    "replicas": (("replicas",), 2),
    "ready workers": (("workers", "ready"), 0),
    "the digest": (("model", "digest"), "other"),
    "the address": (("address",), "elsewhere"),
}


@pytest.mark.parametrize(("path", "value"), MOVED.values(), ids=MOVED.keys())
def test_progress_alone_waits_for_its_turn(path: tuple[Any, ...], value: Any) -> None:
    old = status_of(running())
    new = changed(old, *path, to=value)
    assert not worth_patching(old, new, 1.0)
    assert worth_patching(old, new, 6.0)


@pytest.mark.parametrize(("path", "value"), HAPPENED.values(), ids=HAPPENED.keys())
def test_what_happened_is_written_at_once(path: tuple[Any, ...], value: Any) -> None:
    old = status_of(running())
    assert worth_patching(old, changed(old, *path, to=value), 0.0)


def test_a_first_status_is_written_at_once() -> None:
    assert worth_patching({}, status_of(running()), 0.0)


@given(seconds=st.floats(min_value=0, allow_nan=False))
def test_what_has_not_changed_is_never_written(seconds: float) -> None:
    status = status_of(running())
    assert not worth_patching(status, copy.deepcopy(status), seconds)


AUTO_ON_GPU = {
    "model": {"source": "demo://"},
    "experts": {"memory": "auto"},
    "workers": {"resources": {"limits": {"nvidia.com/gpu": 1}}},
}


def test_slots_that_workers_count_are_not_said_before_one_has() -> None:
    told = status_of(observed(workers=(worker(num_slots=0),)), spec=AUTO_ON_GPU)["plan"]
    assert "slots" not in told
    assert "residentBytes" not in told
    assert told["minBytes"] == 10 * MIB


def test_slots_that_workers_count_are_those_of_the_worker_with_the_fewest() -> None:
    seen = observed(workers=(worker("a", num_slots=30), worker("b", num_slots=20)))
    told = status_of(seen, spec=AUTO_ON_GPU)["plan"]
    assert (told["slots"], told["residentBytes"]) == (22, 22 * MIB), "two staging slots are reported by none"


def test_slots_that_a_worker_counted_stand_while_none_is_heard() -> None:
    before = status_of(observed(workers=(worker(num_slots=30),)), spec=AUTO_ON_GPU)
    assert status_of(observed(workers=()), spec=AUTO_ON_GPU, status=before)["plan"]["slots"] == 32
