"""Step costs from steps made up of known ones: found, kept, told seldom, and hardly moved by what does not belong."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emoe.core.schedule.costs import StepCosts
from emoe.core.schedule.step_cost_fit import FIT_EVERY_STEPS, MIN_STEPS, StepCostFit, StepWork

TRUE = StepCosts(base_seconds=3e-3, prompt_token_seconds=2e-4, sequence_seconds=6e-4, context_token_seconds=2e-7)


def random_work(seed: int, number: int, *, prefill_ratio: float = 0.2) -> Iterator[StepWork]:
    rng = np.random.default_rng(seed)
    for _ in range(number):
        num_decoding = int(rng.integers(1, 9))
        yield StepWork(
            num_prompt_tokens=int(rng.integers(20, 800)) if rng.random() < prefill_ratio else 0,
            num_decoding=num_decoding,
            num_context_tokens=num_decoding * int(rng.integers(20, 900)),
        )


def seconds_of(work: StepWork, costs: StepCosts = TRUE) -> float:
    return costs.step_seconds(
        num_prompt_tokens=work.num_prompt_tokens,
        num_decoding=work.num_decoding,
        num_context_tokens=work.num_context_tokens,
    )


def told(fit: StepCostFit) -> StepCosts:
    assert fit.told is not None
    return fit.told.costs


def off_by(fit: StepCostFit, costs: StepCosts, *, prefill_ratio: float = 0.2) -> float:
    """The median relative error over steps that it has not seen."""
    work = list(random_work(99, 200, prefill_ratio=prefill_ratio))
    return float(np.median([abs(seconds_of(one, told(fit)) / seconds_of(one, costs) - 1) for one in work]))


def test_nothing_is_told_before_enough_steps_were_seen() -> None:
    fit = StepCostFit(step_tokens=512)
    for work in random_work(0, MIN_STEPS - 1):
        fit.observe(work, seconds=seconds_of(work))
    assert fit.told is None
    for work in random_work(1, FIT_EVERY_STEPS):
        fit.observe(work, seconds=seconds_of(work))
    assert told(fit).step_tokens == 512


def test_known_costs_are_found_through_noise_and_steps_that_do_not_belong() -> None:
    fit, rng = StepCostFit(step_tokens=2048), np.random.default_rng(0)
    for work in random_work(0, 600):
        stray = rng.uniform(3, 30) if rng.random() < 0.1 else 1.0
        fit.observe(work, seconds=seconds_of(work) * float(rng.lognormal(0, 0.05)) * stray)
    assert off_by(fit, TRUE) < 0.04
    assert told(fit).base_seconds == pytest.approx(TRUE.base_seconds, rel=0.25)
    assert told(fit).prompt_token_seconds == pytest.approx(TRUE.prompt_token_seconds, rel=0.05)


def test_long_decoding_forgets_nothing_of_what_a_prefill_costs() -> None:
    fit = StepCostFit(step_tokens=2048)
    for work in [*random_work(0, 100, prefill_ratio=0.5), *random_work(1, 3000, prefill_ratio=0.0)]:
        fit.observe(work, seconds=seconds_of(work))
    assert off_by(fit, TRUE, prefill_ratio=1.0) < 0.04


def test_what_the_same_steps_over_and_over_leave_open_stays_as_it_was() -> None:
    fit = StepCostFit(step_tokens=2048)
    always = StepWork(num_prompt_tokens=0, num_decoding=8, num_context_tokens=4000)
    for work in [*random_work(0, 300, prefill_ratio=0.0), *[always] * 1000]:
        fit.observe(work, seconds=seconds_of(work))
    assert off_by(fit, TRUE, prefill_ratio=0.0) < 0.04


def test_a_machine_that_has_become_slower_is_noticed() -> None:
    fit = StepCostFit(step_tokens=2048)
    slower = StepCosts(**{k: v * (2 if k.endswith("_seconds") else 1) for k, v in dataclasses.asdict(TRUE).items()})
    for costs in (TRUE, slower):
        for work in random_work(3, 800):
            fit.observe(work, seconds=seconds_of(work, costs))
    assert off_by(fit, slower) < 0.05


def test_costs_that_foretell_the_same_are_not_told_anew() -> None:
    fit, rng = StepCostFit(step_tokens=2048), np.random.default_rng(0)
    seen = set()
    for work in random_work(0, 3000):
        fit.observe(work, seconds=seconds_of(work) * float(rng.lognormal(0, 0.03)))
        seen.add(fit.told)
    assert len(seen - {None}) <= 5


def test_waits_of_prompts_for_their_misses_are_a_cost_of_misses_alone() -> None:
    fit = StepCostFit(step_tokens=2048, loads_misses=True)
    for work in random_work(0, 600):
        missed = 0.75 * (work.num_prompt_tokens + work.num_decoding)
        stall = 4e-3 * missed
        waiting = dataclasses.replace(work, stall_seconds=stall, num_missed_tokens=missed)
        fit.observe(waiting, seconds=seconds_of(work) + stall)
    assert told(fit).missed_token_seconds == pytest.approx(4e-3, rel=0.01)
    assert told(fit).prompt_token_seconds == pytest.approx(TRUE.prompt_token_seconds, rel=0.2)
    assert told(fit).sequence_seconds == pytest.approx(TRUE.sequence_seconds + 0.75 * 4e-3, rel=0.2)


def test_misses_cost_nothing_where_tokens_are_rerouted() -> None:
    fit = StepCostFit(step_tokens=2048)
    for work in random_work(0, 64):
        fit.observe(dataclasses.replace(work, num_missed_tokens=5.0), seconds=seconds_of(work))
    assert told(fit).missed_token_seconds == 0.0


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 2048), st.integers(0, 64), st.integers(0, 100_000), st.floats(1e-6, 100.0)),
        min_size=FIT_EVERY_STEPS,
        max_size=FIT_EVERY_STEPS,
    )
)
@settings(max_examples=50, deadline=None)
def test_no_cost_is_ever_below_nothing(steps: list[tuple[int, int, int, float]]) -> None:
    fit = StepCostFit(step_tokens=2048)
    for prompt, decoding, context, seconds in steps:
        fit.observe(
            StepWork(num_prompt_tokens=prompt, num_decoding=decoding, num_context_tokens=context), seconds=seconds
        )
    assert all(np.isfinite(value) and value >= 0 for value in dataclasses.asdict(told(fit)).values())
