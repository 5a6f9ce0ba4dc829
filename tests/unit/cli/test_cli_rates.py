from __future__ import annotations

import pytest

from emoe.cli.meter import Meter
from emoe.cli.view import Counters, WorkerView


def worker(**counters: int) -> WorkerView:
    return WorkerView(
        worker_id="w",
        address="127.0.0.1:1",
        ready=True,
        miss_policy="reroute",
        num_resident=4,
        num_slots=6,
        slot_bytes=10,
        num_running=1,
        num_waiting=0,
        counters=Counters(**counters),
    )


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> Meter:
    return Meter(clock)


def look(meter: Meter, clock: Clock, seconds: float, **counters: int) -> tuple[float, float, float | None]:
    clock.now += seconds
    rates = meter.look(num_experts=24, queue=None, workers=(worker(**counters),)).rates["w"]
    return rates.prefill_tokens_per_second, rates.decode_tokens_per_second, rates.hit_rate


def test_rates_cover_the_time_since_the_last_look(meter: Meter, clock: Clock) -> None:
    look(meter, clock, 1, num_prompt_tokens=100, num_completion_tokens=10)
    assert look(meter, clock, 2, num_prompt_tokens=300, num_completion_tokens=50)[:2] == (100, 20)


def test_the_first_look_has_totals_but_no_rates(meter: Meter, clock: Clock) -> None:
    assert look(meter, clock, 1, num_prompt_tokens=100, num_expert_hits=3, num_expert_choices=4) == (0, 0, 0.75)


def test_the_hit_rate_is_that_of_the_interval(meter: Meter, clock: Clock) -> None:
    look(meter, clock, 1, num_expert_hits=0, num_expert_choices=100)
    assert look(meter, clock, 1, num_expert_hits=9, num_expert_choices=110)[2] == 0.9


def test_the_hit_rate_stays_while_nothing_runs(meter: Meter, clock: Clock) -> None:
    look(meter, clock, 1, num_expert_hits=50, num_expert_choices=100)
    assert look(meter, clock, 1, num_expert_hits=50, num_expert_choices=100)[2] == 0.5


def test_there_is_no_hit_rate_before_the_first_token(meter: Meter, clock: Clock) -> None:
    assert look(meter, clock, 1)[2] is None


def test_a_restarted_worker_counts_from_nothing(meter: Meter, clock: Clock) -> None:
    look(meter, clock, 1, num_prompt_tokens=1000, num_completion_tokens=1000, num_expert_choices=9000)
    restarted = look(meter, clock, 1, num_prompt_tokens=10, num_completion_tokens=5, num_expert_choices=20)
    assert restarted[:2] == (10, 5)
