"""eMoE's admission: who may start depends on who would be late by it, the candidate included, and nobody starves."""

from __future__ import annotations

from emoe.core.schedule.cluster import Cluster, WorkerReport
from emoe.core.schedule.costs import StepCosts
from emoe.core.schedule.emoe import PATIENCE_SECONDS, STARVING_EVERY, EmoeAdmission
from emoe.core.schedule.placement import PLACEMENTS
from emoe.core.schedule.request import QueuedRequest

COSTS = StepCosts(base_seconds=0.01, prompt_token_seconds=0.001, sequence_seconds=0.0)
"""A prompt of 1,000 tokens takes a second."""


def request(
    name: str,
    num_tokens: int,
    *,
    ttft: float | None = None,
    tpot: float | None = None,
    end_to_end: float | None = None,
    arrived: float = 0.0,
) -> QueuedRequest:
    return QueuedRequest(
        request_id=name,
        task="qa",
        arrived_seconds=arrived,
        num_prompt_tokens=num_tokens,
        num_expected_tokens=10,
        max_tokens=10,
        ttft_seconds=ttft,
        tpot_seconds=tpot,
        end_to_end_seconds=end_to_end,
    )


def cluster(*names: str) -> Cluster:
    made = Cluster()
    for name in names or ("w",):
        made.update(WorkerReport(worker_id=name, free_sequences=4, max_tokens_per_sequence=10_000, costs=COSTS))
    return made


def policy(*waiting: QueuedRequest) -> EmoeAdmission:
    made = EmoeAdmission(PLACEMENTS["residency"])
    for one in waiting:
        made.add(one, one.arrived_seconds)
    return made


def picked(made: EmoeAdmission, workers: Cluster, now: float = 0.0) -> str | None:
    admission = made.pick(workers, now)
    return None if admission is None else admission.request.request_id


def test_the_strictest_goes_first() -> None:
    made = policy(request("relaxed", 100, ttft=9.0), request("strict", 100, ttft=1.0), request("none", 100))
    workers = cluster()
    assert [picked(made, workers) for _ in range(4)] == ["strict", "relaxed", "none", None]


def running_with_slack(workers: Cluster) -> None:
    """One on w that has half a second to spare."""
    workers.start(request("running", 100, end_to_end=0.7), "w", 0.0)
    workers.first_token("running", 0.11)


def test_a_prompt_that_would_make_a_running_request_late_waits() -> None:
    workers = cluster()
    running_with_slack(workers)
    made = policy(request("long", 2000, ttft=30.0))
    assert picked(made, workers, 0.11) is None
    workers.end("running", 0.3)
    assert picked(made, workers, 0.3) == "long"


def test_a_short_prompt_passes_a_long_one_that_must_wait() -> None:
    workers = cluster()
    running_with_slack(workers)
    made = policy(request("long", 2000, ttft=10.0), request("short", 50, ttft=20.0))
    assert picked(made, workers, 0.11) == "short"


def test_it_goes_to_the_worker_where_it_harms_nobody() -> None:
    workers = cluster("w", "other")
    running_with_slack(workers)
    admission = policy(request("long", 2000, ttft=30.0)).pick(workers, 0.11)
    assert admission is not None
    assert admission.worker_id == "other"


def test_the_candidates_own_target_counts() -> None:
    made = policy(request("hopeless", 5000, ttft=1.0, arrived=0.0), request("fine", 100, ttft=2.0, arrived=0.0))
    workers = cluster()
    assert [picked(made, workers) for _ in range(2)] == ["fine", "hopeless"]


def test_running_requests_that_are_late_already_hold_nobody_up() -> None:
    workers = cluster()
    workers.start(request("lost", 100, end_to_end=0.05), "w", 0.0)
    workers.first_token("lost", 0.11)
    assert picked(policy(request("next", 2000, ttft=30.0)), workers, 0.11) == "next"


def test_nobody_waits_for_ever() -> None:
    workers = cluster()
    made = policy(request("long", 2000, ttft=10.0))
    now = 0.0
    for number in range(1000):
        name = f"running{number}"
        workers.start(request(name, 10, end_to_end=1.0, arrived=now), "w", now)
        workers.first_token(name, now + 0.02)
        if picked(made, workers, now + 0.02) == "long":
            break
        workers.end(name, now + 0.1)
        now += 0.1
    assert PATIENCE_SECONDS - 15 < now <= PATIENCE_SECONDS + 1


def test_those_that_waited_too_long_take_no_more_than_their_turns() -> None:
    late = [request(f"late{number}", 100, ttft=0.05) for number in range(3)]
    made, workers = policy(*late), cluster()
    now = PATIENCE_SECONDS + 1
    for number in range(2 * STARVING_EVERY):
        made.add(request(f"new{number}", 10, ttft=5.0, arrived=now), now)
    order = [picked(made, workers, now) for _ in range(STARVING_EVERY + 2)]
    assert order.index("late1") - order.index("late0") == STARVING_EVERY
    assert "late2" not in order


def test_one_that_left_is_not_picked() -> None:
    made = policy(request("one", 100, ttft=1.0))
    made.discard("one")
    assert picked(made, cluster()) is None
    assert len(made) == 0
