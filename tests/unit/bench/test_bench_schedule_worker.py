"""The simulated worker against the engine's loop written down step by step. Times are sums of powers of two: exact."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emoe.bench.simulate_worker import IDLE, SimulatedWorker
from emoe.core.schedule.costs import StepCosts

UNIT = 2.0**-12


@dataclasses.dataclass
class Naive:
    """One request in the plain loop."""

    number: int
    at_seconds: float
    pending: int
    answer_tokens: int
    miss_seconds: float
    in_kv: int = 0
    written: int = 0


def run_naively(requests: list[Naive], costs: StepCosts) -> dict[int, tuple[float, float]]:
    """Number -> (first token, end)."""
    times: dict[int, tuple[float, float]] = {}
    coming, running, now = list(requests), [], 0.0
    while coming or running:
        if not running:
            now = max(now, coming[0].at_seconds)
        while coming and coming[0].at_seconds <= now:
            running.append(coming.pop(0))
        decoding = [request for request in running if request.written]
        room, num_prompt_tokens, missed = costs.step_tokens - len(decoding), 0, 0.0
        wrote = list(decoding)
        context = sum(request.in_kv for request in decoding)
        for request in running:
            size = 1 if request.written else min(request.pending, room)
            missed += size * request.miss_seconds
            request.in_kv += size
            if not request.written:
                request.pending -= size
                room -= size
                num_prompt_tokens += size
                if not request.pending:
                    wrote.append(request)
        now += missed + costs.step_seconds(
            num_prompt_tokens=num_prompt_tokens, num_decoding=len(decoding), num_context_tokens=context
        )
        for request in wrote:
            request.written += 1
            first = now if request.written == 1 else times[request.number][0]
            times[request.number] = (first, now)
        running = [request for request in running if request.written < request.answer_tokens]
    return times


def run_simulated(requests: list[Naive], costs: StepCosts, *, num_rows: int) -> dict[int, tuple[float, float]]:
    worker = SimulatedWorker(costs, num_rows=num_rows)
    first: dict[int, float] = {}
    times: dict[int, tuple[float, float]] = {}

    def finish_until(seconds: float) -> None:
        while worker.until_seconds < seconds:
            now = worker.until_seconds
            worker.finish()
            first.update(dict.fromkeys(worker.wrote_first, now))
            times.update({number: (first[number], now) for number in worker.ended})

    for request in requests:
        finish_until(request.at_seconds)
        worker.give(
            request.number,
            prompt_tokens=request.pending,
            answer_tokens=request.answer_tokens,
            at_seconds=request.at_seconds,
            miss_seconds=request.miss_seconds,
        )
    finish_until(IDLE)
    return times


REQUESTS = st.lists(
    st.tuples(
        st.integers(1, 4000).map(lambda gap: gap * UNIT),
        st.one_of(st.integers(1, 12), st.integers(1, 200)),
        st.one_of(st.just(1), st.integers(1, 60)),
        st.sampled_from([0.0, UNIT]),
    ),
    min_size=1,
    max_size=12,
)
COSTS = st.builds(
    StepCosts,
    base_seconds=st.integers(1, 64).map(lambda units: units * UNIT),
    prompt_token_seconds=st.integers(0, 4).map(lambda units: units * UNIT),
    sequence_seconds=st.integers(0, 4).map(lambda units: units * UNIT),
    context_token_seconds=st.sampled_from([0.0, UNIT]),
    step_tokens=st.integers(12, 64),
)


@given(drawn=REQUESTS, costs=COSTS)
def test_jumping_over_steps_gives_the_times_of_taking_each(
    drawn: list[tuple[float, int, int, float]], costs: StepCosts
) -> None:
    at_seconds, requests = 0.0, []
    for number, (gap, prompt, answer, miss) in enumerate(drawn):
        at_seconds += gap
        requests.append(Naive(number, at_seconds, prompt, answer, miss))
    copies = [dataclasses.replace(request) for request in requests]
    assert run_simulated(requests, costs, num_rows=12) == run_naively(copies, costs)


def test_a_request_never_joins_a_step_that_has_begun() -> None:
    worker = SimulatedWorker(StepCosts(base_seconds=1.0, prompt_token_seconds=0.0, sequence_seconds=0.0), num_rows=2)
    for number in range(2):
        worker.give(number, prompt_tokens=5, answer_tokens=1, at_seconds=0.0)
    worker.finish()
    assert worker.ended == [0]
    worker.finish()
    assert worker.ended == [1]


def test_an_arrival_ends_a_stretch_of_decoding_at_the_next_step() -> None:
    worker = SimulatedWorker(StepCosts(base_seconds=1.0, prompt_token_seconds=0.0, sequence_seconds=0.0), num_rows=2)
    worker.give(0, prompt_tokens=5, answer_tokens=100, at_seconds=0.0)
    worker.finish()
    assert worker.until_seconds == 100.0
    assert worker.give(1, prompt_tokens=5, answer_tokens=1, at_seconds=7.25)
    assert worker.until_seconds == 8.0
    worker.finish()
    assert (worker.started, worker.until_seconds) == (8.0, 9.0)


def test_a_worker_with_nothing_to_do_is_idle_again() -> None:
    worker = SimulatedWorker(StepCosts(base_seconds=1.0, prompt_token_seconds=0.0, sequence_seconds=0.0), num_rows=2)
    assert worker.until_seconds == IDLE
    worker.give(0, prompt_tokens=5, answer_tokens=1, at_seconds=3.0)
    assert worker.until_seconds == pytest.approx(4.0)
    worker.finish()
    assert (worker.ended, worker.until_seconds) == ([0], IDLE)
