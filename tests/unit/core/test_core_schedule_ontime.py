"""`ontime`: who is let in decides how many are in time; the longest gives way, and what runs keeps its pace."""

from __future__ import annotations

import pytest

from emoe.core.schedule.cluster import Cluster, WorkerReport
from emoe.core.schedule.costs import StepCosts
from emoe.core.schedule.ontime import LATE_EVERY, PATIENCE_SECONDS, OnTimeAdmission
from emoe.core.schedule.placement import PLACEMENTS
from emoe.core.schedule.request import QueuedRequest

COSTS = StepCosts(base_seconds=0.0, prompt_token_seconds=1e-3, sequence_seconds=1e-3, step_tokens=100)
"""A prompt of 1,000 tokens takes a second, a step of one a tenth."""


any_number = pytest.mark.parametrize("num", [1, 3], ids=["one opening", "several"])


def request(
    name: str,
    tokens: int,
    *,
    ttft: float | None = None,
    tpot: float | None = None,
    arrived: float = 0.0,
    answer: int = 100,
) -> QueuedRequest:
    return QueuedRequest(
        request_id=name,
        task="qa",
        arrived_seconds=arrived,
        num_prompt_tokens=tokens,
        num_expected_tokens=answer,
        max_tokens=answer,
        ttft_seconds=ttft,
        tpot_seconds=tpot,
    )


def cluster(num: int = 1, *, free: int = 8) -> Cluster:
    made = Cluster()
    for number in range(num):
        made.update(
            WorkerReport(worker_id=f"w{number}", free_sequences=free, max_tokens_per_sequence=100_000, costs=COSTS)
        )
    return made


def decoding(num: int, *, tpot: float) -> Cluster:
    """Each worker has one request, named as the worker, that has just begun its answer."""
    made = cluster(num)
    for worker in made.worker_ids:
        made.start(request(worker, 10, tpot=tpot), worker, 0.0)
        made.first_token(worker, 0.1)
    return made


def policy(*waiting: QueuedRequest) -> OnTimeAdmission:
    made = OnTimeAdmission(PLACEMENTS["residency"])
    for one in waiting:
        made.add(one, one.arrived_seconds)
    return made


def picked(made: OnTimeAdmission, workers: Cluster, now: float = 0.0) -> str | None:
    admission = made.pick(workers, now)
    return None if admission is None else admission.request.request_id


def serve(made: OnTimeAdmission, workers: Cluster, now: float = 0.0) -> list[str]:
    """One after another, each in the time that its prompt takes."""
    served = []
    while (admission := made.pick(workers, now)) is not None:
        workers.start(admission.request, admission.worker_id, now)
        now += admission.request.num_prompt_tokens * COSTS.prompt_token_seconds
        workers.end(admission.request.request_id, now)
        served.append(admission.request.request_id)
    return served


def test_due_soonest_goes_first() -> None:
    made = policy(request("none", 100), request("relaxed", 100, ttft=9.0), request("strict", 100, ttft=1.0))
    assert serve(made, cluster()) == ["strict", "relaxed", "none"]


def test_one_that_cannot_be_in_time_lets_those_pass_that_can() -> None:
    made = policy(request("lost", 1000, ttft=0.5), request("can", 400, ttft=0.6))
    assert serve(made, cluster()) == ["can", "lost"]


def test_of_more_than_can_be_done_the_longest_gives_way() -> None:
    short = [request(f"short{number}", 300, ttft=1.1) for number in range(3)]
    assert serve(policy(request("long", 900, ttft=1.0), *short), cluster()) == ["short0", "short1", "short2", "long"]


def test_of_more_than_can_be_done_a_long_answer_gives_way_as_a_long_prompt_does() -> None:
    short = [request(f"short{number}", 200, ttft=1.1) for number in range(3)]
    wordy = request("wordy", 200, ttft=1.0, answer=900)
    assert serve(policy(wordy, *short), cluster(free=3)) == ["short0", "short1", "short2", "wordy"]


def test_while_a_sequence_is_free_for_each_no_answer_is_too_long() -> None:
    short = [request(f"short{number}", 200, ttft=1.1) for number in range(3)]
    wordy = request("wordy", 200, ttft=1.0, answer=900)
    assert picked(policy(wordy, *short), cluster(free=4)) == "wordy"


def test_answers_that_run_leave_less_time_for_the_rest() -> None:
    def first(num_running: int) -> str | None:
        workers = cluster()
        for number in range(num_running):
            workers.start(request(f"runs{number}", 10, answer=5000), "w0", 0.0)
            workers.first_token(f"runs{number}", 0.1)
        return picked(policy(request("long", 500, ttft=1.4), request("short", 300, ttft=1.5)), workers, 0.1)

    assert (first(0), first(7)) == ("long", "short")


def test_without_an_excess_the_longest_keeps_its_place() -> None:
    made = policy(request("long", 600, ttft=1.0), request("short", 200, ttft=1.1))
    assert serve(made, cluster()) == ["long", "short"]


def test_more_workers_are_an_excess_less() -> None:
    short = [request(f"short{number}", 300, ttft=1.1) for number in range(3)]
    assert picked(policy(request("long", 900, ttft=1.0), *short), cluster(4)) == "long"


@any_number
def test_a_worker_busy_with_prompts_is_given_no_more_of_them(num: int) -> None:
    made, workers = policy(request("next", 100, ttft=9.0)), cluster(num)
    for worker in workers.worker_ids:
        workers.start(request(f"first {worker}", 500), worker, 0.0)
    assert picked(made, workers, 0.1) is None
    assert picked(made, workers, 0.5) == "next"


@any_number
def test_what_runs_keeps_its_pace(num: int) -> None:
    made = policy(request("long", 5000, ttft=60.0), request("short", 500, ttft=60.0))
    workers = decoding(num, tpot=0.02)
    for worker in workers.worker_ids:
        workers.progressed(worker, 90, 0.2)
    assert picked(made, workers, 0.2) == "short"


@any_number
def test_an_urgent_one_does_not_make_the_expected_answers_late(num: int) -> None:
    made, workers = policy(request("new", 2500, ttft=5.0)), decoding(num, tpot=0.02)
    assert picked(made, workers, 2.4) is None


@any_number
def test_an_answer_that_may_end_soon_is_spared_until_the_newcomer_is_urgent(num: int) -> None:
    made, workers = policy(request("new", 100, ttft=10.0)), decoding(num, tpot=0.02)
    assert workers.least_slack_seconds[0] > 0.1
    assert picked(made, workers, 0.2) is None
    assert picked(made, workers, 9.0) == "new"


@any_number
def test_one_more_sequence_must_not_slow_the_steps_beyond_the_tightest_pace(num: int) -> None:
    made, workers = policy(request("new", 1, ttft=1.0)), decoding(num, tpot=0.0025)
    assert picked(made, workers, 0.9) is None
    made, workers = policy(request("new", 1, ttft=1.0)), decoding(num, tpot=0.0035)
    assert picked(made, workers, 0.9) == "new"


def test_an_idle_worker_is_chosen_over_one_whose_requests_would_be_late() -> None:
    made, workers = policy(request("new", 3000, ttft=60.0)), cluster(2)
    workers.start(request("running", 10, tpot=0.02), "w0", 0.0)
    workers.first_token("running", 0.1)
    admission = made.pick(workers, 0.2)
    assert admission is not None
    assert admission.worker_id == "w1"


def test_late_ones_have_every_so_many_th_turn_after_a_while() -> None:
    made, workers = policy(request("late", 500, ttft=0.1)), cluster()
    now, served = 0.0, []
    while "late" not in served:
        now += 0.5
        assert now < 2 * PATIENCE_SECONDS
        made.add(request(f"r{now}", 400, ttft=0.5, arrived=now), now)
        served += [admission.request.request_id] if (admission := made.pick(workers, now)) is not None else []
    assert now >= PATIENCE_SECONDS
    assert now <= PATIENCE_SECONDS + LATE_EVERY
