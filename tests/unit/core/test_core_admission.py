"""Admission picks a request that fits and the worker that suits it; nothing fits, nothing is picked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emoe.core.admission import ADMISSION_POLICIES, AdmissionPolicy, Waiting, WorkerCapacity

each_policy = pytest.mark.parametrize("policy", ADMISSION_POLICIES.values(), ids=ADMISSION_POLICIES.keys())


def waiting(
    request_id: str, *, arrived: float = 0.0, ttft: float | None = None, num_tokens: int = 10, task: str = "code"
) -> Waiting:
    return Waiting(request_id=request_id, task=task, num_tokens=num_tokens, arrived_seconds=arrived, ttft_seconds=ttft)


def worker(
    worker_id: str, *, free: int = 1, max_tokens: int = 100, coverage: dict[str, float] | None = None
) -> WorkerCapacity:
    return WorkerCapacity(
        worker_id=worker_id, free_sequences=free, max_tokens_per_sequence=max_tokens, coverage=coverage or {}
    )


REQUESTS = st.lists(
    st.builds(
        Waiting,
        request_id=st.uuids().map(str),
        task=st.sampled_from(["code", "math"]),
        num_tokens=st.integers(1, 300),
        arrived_seconds=st.floats(0, 100),
        ttft_seconds=st.none() | st.floats(0.1, 10),
    ),
    max_size=6,
)
WORKERS = st.lists(
    st.builds(
        WorkerCapacity,
        worker_id=st.uuids().map(str),
        free_sequences=st.integers(0, 3),
        max_tokens_per_sequence=st.integers(1, 300),
        coverage=st.dictionaries(st.sampled_from(["code", "math"]), st.floats(0, 1)),
    ),
    max_size=4,
)


@each_policy
@given(requests=REQUESTS, workers=WORKERS)
def test_a_pick_fits_and_is_made_whenever_something_fits(
    policy: AdmissionPolicy, requests: list[Waiting], workers: list[WorkerCapacity]
) -> None:
    def fits(request: Waiting, candidate: WorkerCapacity) -> bool:
        return candidate.free_sequences > 0 and request.num_tokens <= candidate.max_tokens_per_sequence

    pick = policy.pick(requests, workers)
    if pick is None:
        assert not any(fits(request, candidate) for request in requests for candidate in workers)
    else:
        request = next(request for request in requests if request.request_id == pick.request_id)
        assert fits(request, next(candidate for candidate in workers if candidate.worker_id == pick.worker_id))


def test_fifo_takes_the_oldest_whatever_the_order_of_the_queue() -> None:
    pick = ADMISSION_POLICIES["fifo"].pick(
        [waiting("late", arrived=2, ttft=0.1), waiting("early", arrived=1)], [worker("a")]
    )
    assert pick is not None
    assert pick.request_id == "early"


def test_edf_takes_the_first_token_due_soonest() -> None:
    requests = [waiting("no-target"), waiting("slack", arrived=1, ttft=9), waiting("urgent", arrived=3, ttft=1)]
    pick = ADMISSION_POLICIES["edf"].pick(requests, [worker("a")])
    assert pick is not None
    assert pick.request_id == "urgent"


def test_edf_serves_requests_without_a_target_in_order_of_arrival() -> None:
    pick = ADMISSION_POLICIES["edf"].pick([waiting("late", arrived=2), waiting("early", arrived=1)], [worker("a")])
    assert pick is not None
    assert pick.request_id == "early"


@each_policy
def test_a_request_too_long_for_all_does_not_hold_up_the_next(policy: AdmissionPolicy) -> None:
    pick = policy.pick([waiting("long", num_tokens=1000), waiting("short", arrived=1)], [worker("a")])
    assert pick is not None
    assert pick.request_id == "short"


@each_policy
def test_the_worker_whose_residents_suit_the_task_is_preferred(policy: AdmissionPolicy) -> None:
    suited = worker("suited", coverage={"code": 0.9, "math": 0.1})
    free = worker("free", free=8, coverage={"code": 0.5, "math": 0.9})
    pick = policy.pick([waiting("r", task="code")], [free, suited])
    assert pick is not None
    assert pick.worker_id == "suited"


@each_policy
def test_the_emptier_worker_is_preferred_between_equals(policy: AdmissionPolicy) -> None:
    pick = policy.pick([waiting("r")], [worker("busy", free=1), worker("free", free=5)])
    assert pick is not None
    assert pick.worker_id == "free"
