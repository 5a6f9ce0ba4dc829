"""What the workers can do is read from their costs, and what running answers still take is kept as they go on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emoe.core.schedule.capacity import answer_token_weight, read_capacity, work_tokens
from emoe.core.schedule.cluster import Cluster, WorkerReport
from emoe.core.schedule.costs import StepCosts
from emoe.core.schedule.request import QueuedRequest

COSTS = StepCosts(base_seconds=0.012, prompt_token_seconds=1e-4, sequence_seconds=1e-3, step_tokens=100)


def request(name: str, tokens: int, answer: int) -> QueuedRequest:
    return QueuedRequest(
        request_id=name,
        task="qa",
        arrived_seconds=0.0,
        num_prompt_tokens=tokens,
        num_expected_tokens=answer,
        max_tokens=1000,
    )


def cluster(num: int) -> Cluster:
    made = Cluster()
    for number in range(num):
        made.update(WorkerReport(worker_id=f"w{number}", free_sequences=8, max_tokens_per_sequence=4000, costs=COSTS))
    return made


def test_an_answers_token_weighs_its_part_of_a_full_step() -> None:
    weight = answer_token_weight(cluster(2))
    assert weight == pytest.approx((0.012 + 8 * 0.001) / 8 / 1e-4)
    assert work_tokens(request("a", 30, 10), weight) == pytest.approx(30 + 10 * 25)


def test_what_runs_is_taken_from_what_the_workers_can_do() -> None:
    workers = cluster(2)
    idle = read_capacity(workers, 25.0, ratio=1.0)
    assert (idle.tokens_per_second, idle.busy_tokens, idle.answering_tokens) == (pytest.approx(20_000), 0, 0)

    workers.start(request("a", 300, 40), "w0", 0.0)
    begun = read_capacity(workers, 25.0, ratio=1.0)
    assert (begun.busy_tokens, begun.answering_tokens) == (300, 40 * 25)
    assert begun.answering_seconds == pytest.approx(40 * 0.020)

    workers.first_token("a", 1.0)
    workers.progressed("a", 30, 2.0)
    going_on = read_capacity(workers, 25.0, ratio=1.0)
    assert (going_on.busy_tokens, going_on.answering_tokens) == (0, 10 * 25)


STEPS = st.lists(st.tuples(st.sampled_from(["start", "first", "on", "end", "lost"]), st.integers(0, 7)), max_size=40)


@given(STEPS)
def test_the_answers_still_to_come_are_none_once_nothing_runs(steps: list[tuple[str, int]]) -> None:
    workers, running = cluster(3), dict[str, int]()
    for at, (what, number) in enumerate(steps):
        name = f"r{number}"
        if what == "start" and name not in running and f"w{number % 3}" in workers.worker_ids:
            workers.start(request(name, 100, 5), f"w{number % 3}", float(at))
            running[name] = 0
        elif what == "first":
            workers.first_token(name, float(at))
        elif what == "on" and name in running:
            running[name] += 3
            workers.progressed(name, running[name], float(at))
        elif what == "end":
            workers.end(name, float(at))
            running.pop(name, None)
        elif what == "lost":
            workers.remove(f"w{number % 3}")
            running = {one: tokens for one, tokens in running.items() if int(one[1:]) % 3 != number % 3}
    for name in list(running):
        workers.end(name, 100.0)
    assert workers.num_answer_tokens == 0
