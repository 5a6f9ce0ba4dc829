"""Where a request goes: by free room, by wait, and by what a worker's residents cover for its wait."""

from __future__ import annotations

import numpy as np
import pytest

from emoe.core.schedule.cluster import Cluster, WorkerReport
from emoe.core.schedule.costs import StepCosts
from emoe.core.schedule.placement import PLACEMENTS
from emoe.core.schedule.request import QueuedRequest

COSTS = StepCosts(base_seconds=0.01, prompt_token_seconds=0.001, sequence_seconds=0.0)
"""A prompt of 1,000 tokens takes a second."""


def request(name: str = "one", *, num_tokens: int = 100, ttft: float | None = None) -> QueuedRequest:
    return QueuedRequest(
        request_id=name,
        task="qa",
        arrived_seconds=0.0,
        num_prompt_tokens=num_tokens,
        num_expected_tokens=10,
        max_tokens=10,
        ttft_seconds=ttft,
    )


def workers(**coverage: float) -> Cluster:
    cluster = Cluster()
    for name, covered in coverage.items():
        cluster.update(
            WorkerReport(
                worker_id=name,
                free_sequences=4,
                max_tokens_per_sequence=10_000,
                costs=COSTS,
                coverage={"qa": covered},
            )
        )
    return cluster


def placed(placement: str, cluster: Cluster, one: QueuedRequest, *, may: list[bool] | None = None) -> str:
    allowed = np.array(may).nonzero()[0] if may is not None else cluster.fitting(one)
    return cluster.worker_id(PLACEMENTS[placement].place(one, cluster, allowed, 0.0).row)


def busy(cluster: Cluster, worker_id: str, *, seconds: float) -> None:
    cluster.start(request(f"busy {worker_id}", num_tokens=round(seconds * 1000)), worker_id, 0.0)


def test_most_free_goes_where_most_sequences_are_free() -> None:
    cluster = workers(a=1.0, b=0.0)
    busy(cluster, "a", seconds=0.001)
    assert placed("most-free", cluster, request()) == "b"


def test_least_wait_goes_where_the_prompts_before_it_are_fewest() -> None:
    cluster = workers(a=1.0, b=0.0)
    busy(cluster, "a", seconds=1.0)
    busy(cluster, "b", seconds=0.3)
    assert placed("least-wait", cluster, request()) == "b"


@pytest.mark.parametrize("ttft", [None, 1.0])
def test_residency_goes_where_the_task_is_covered_best(ttft: float | None) -> None:
    assert placed("residency", workers(a=0.5, b=0.7, c=0.6), request(ttft=ttft)) == "b"


def test_coverage_is_worth_some_waiting() -> None:
    cluster = workers(a=0.5, b=0.9)
    busy(cluster, "b", seconds=0.2)
    assert placed("residency", cluster, request(ttft=1.0)) == "b"


@pytest.mark.parametrize("ttft", [None, 3.0])
def test_a_request_does_not_queue_at_one_worker_while_others_idle(ttft: float | None) -> None:
    cluster = workers(a=0.5, b=0.7)
    busy(cluster, "b", seconds=2.0)
    assert placed("residency", cluster, request(ttft=ttft)) == "a"


def test_a_worker_that_would_be_late_is_passed_over_however_well_it_covers() -> None:
    cluster = workers(a=0.0, b=1.0)
    busy(cluster, "b", seconds=0.5)
    assert placed("residency", cluster, request(ttft=0.55)) == "a"


def test_one_that_is_late_everywhere_goes_where_it_is_soonest() -> None:
    cluster = workers(a=0.0, b=1.0)
    busy(cluster, "b", seconds=0.5)
    assert placed("residency", cluster, request(ttft=0.01)) == "a"


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_none_goes_where_it_may_not(placement: str) -> None:
    cluster = workers(a=0.9, b=0.1)
    assert placed(placement, cluster, request(), may=[False, True]) == "b"
