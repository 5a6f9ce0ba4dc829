"""When the running requests are foretold, and what their demand is: over a small engine, and over requests made up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.engines import add, open_parts, random_prompts

from emoe.core.own_routing import SPAN_TOKENS, Array
from emoe.worker.build import EngineParts
from emoe.worker.engine import Engine
from emoe.worker.own_counts import OwnCounts, OwnRouting
from emoe.worker.running_demand import OwnFrequencies, RunningForecast, RunningRequest, look

Checkpoint = Callable[[str], Path]
SHAPE = (1, 4)
REFRESH_TOKENS = 16


@pytest.fixture
def parts(checkpoint: Checkpoint) -> Iterator[EngineParts]:
    with open_parts(checkpoint("mixtral"), miss_policy="reroute", max_concurrency=4, step_tokens=32) as opened:
        options = dataclasses.replace(opened.options, own_routing_tokens=REFRESH_TOKENS)
        # Random weights may end an answer at any token.
        yield dataclasses.replace(opened, options=options, eos_token_ids=frozenset())


def steps(engine: Engine, number: int) -> None:
    for _ in range(number):
        engine.step()


def is_foretold(engine: Engine) -> list[bool]:
    return [request.routing is not None for request in look(engine)]


def test_a_request_is_foretold_once_its_prompt_has_run_and_after_every_interval(parts: EngineParts) -> None:
    engine = parts.build_engine()
    add(engine, "one", random_prompts([9])[0], max_tokens=100)
    moments = []
    for step in range(40):
        engine.step()
        if engine.num_moments > len(moments):
            moments.append(step)
            assert is_foretold(engine) == [True]
        assert is_foretold(engine) == [False]
    assert moments == [0, REFRESH_TOKENS, 2 * REFRESH_TOKENS]


def test_a_long_prompt_is_foretold_while_it_still_runs(parts: EngineParts) -> None:
    engine = parts.build_engine()
    add(engine, "long", random_prompts([70])[0], max_tokens=5)
    engine.step()
    (request,) = look(engine)
    assert request.routing is not None
    assert request.num_coming_tokens == 70 - 32 + 5


def test_what_nobody_looks_at_is_told_once(parts: EngineParts) -> None:
    engine = parts.build_engine()
    add(engine, "one", random_prompts([9])[0], max_tokens=100)
    steps(engine, 60)
    assert engine.num_moments == 1


def test_a_request_that_soon_will_be_due_is_foretold_with_another(parts: EngineParts) -> None:
    engine = parts.build_engine()
    add(engine, "first", random_prompts([9])[0], max_tokens=100)
    engine.step()
    look(engine)
    steps(engine, REFRESH_TOKENS // 2 - 1)
    add(engine, "second", random_prompts([9])[0], max_tokens=100)
    engine.step()
    assert is_foretold(engine) == [True, True]
    add(engine, "third", random_prompts([9])[0], max_tokens=100)
    engine.step()
    assert is_foretold(engine) == [False, False, True]


def test_own_counts_are_those_that_the_engine_counted_for_the_task(parts: EngineParts) -> None:
    engine = parts.build_engine()
    add(engine, "one", random_prompts([9])[0], max_tokens=100)
    steps(engine, 5)
    (request,) = look(engine)
    assert request.routing is not None
    counts = engine.task_counts["chat"]
    np.testing.assert_allclose(request.routing.spans()[0], counts / counts.sum(axis=1)[0], rtol=1e-6)


def test_an_engine_that_is_not_told_to_keeps_no_counts(parts: EngineParts) -> None:
    engine = dataclasses.replace(parts, options=dataclasses.replace(parts.options, own_routing_tokens=0)).build_engine()
    add(engine, "one", random_prompts([9])[0], max_tokens=100)
    engine.step()
    assert look(engine) == []
    assert engine.num_moments == 0


@pytest.mark.parametrize(("max_tokens", "expected"), [(100, REFRESH_TOKENS), (4, 3)], ids=["interval", "answer's-end"])
def test_coming_tokens_reach_to_the_next_forecast_or_the_answers_end(
    parts: EngineParts, max_tokens: int, expected: int
) -> None:
    engine = parts.build_engine()
    add(engine, "one", random_prompts([9])[0], max_tokens=max_tokens)
    engine.step()
    assert [request.num_coming_tokens for request in look(engine)] == [expected]


def routed(*experts: int) -> OwnRouting:
    own = OwnCounts(np.array([0]), SHAPE)
    own.add(np.array(experts)[None, :, None])
    return own.look()


def request(name: str, routing: OwnRouting | None, *, tokens: int = 10, task: str = "chat") -> RunningRequest:
    return RunningRequest(sequence_id=name, task=task, num_coming_tokens=tokens, routing=routing)


def test_demand_is_the_sum_of_what_each_is_expected_to_route() -> None:
    forecast = RunningForecast(SHAPE, OwnFrequencies())
    running = forecast.update([request("a", routed(0, 0), tokens=10), request("b", routed(3), tokens=6)])
    assert running.num_requests == 2
    np.testing.assert_allclose(running.demand, [[10, 0, 0, 6]])


def test_own_frequencies_weigh_all_of_it_and_its_latest_tokens() -> None:
    early, late = [0] * 64, [1] * 64
    (predicted,) = OwnFrequencies().predict(routed(*early, *late).spans()[None])
    np.testing.assert_allclose(predicted, [[0.6 * 0.5, 0.6 * 0.5 + 0.4, 0, 0]], rtol=1e-6)


def test_the_version_rises_when_one_is_foretold_anew_and_when_one_ends_and_else_stays() -> None:
    forecast = RunningForecast(SHAPE, OwnFrequencies())
    assert forecast.update([]).version == 0
    assert forecast.update([request("a", routed(0))]).version == 1
    assert forecast.update([request("a", None)]).version == 1
    assert forecast.update([request("a", routed(1))]).version == 2
    ended = forecast.update([])
    assert (ended.version, ended.num_requests, ended.demand.sum()) == (3, 0, 0)
    assert forecast.update([]).version == 3


def test_a_request_not_foretold_yet_is_left_out() -> None:
    forecast = RunningForecast(SHAPE, OwnFrequencies())
    running = forecast.update([request("prompt runs", None), request("b", routed(2))])
    assert running.num_requests == 1
    np.testing.assert_allclose(running.demand, [[0, 0, 10, 0]])


def test_layers_that_a_task_is_insensitive_to_ask_for_nothing() -> None:
    forecast = RunningForecast(SHAPE, OwnFrequencies(), lambda task: np.array([0.0 if task == "chat" else 1.0]))
    running = forecast.update([request("a", routed(0)), request("b", routed(1), task="code")])
    np.testing.assert_allclose(running.demand, [[0, 10, 0, 0]])


def test_requests_are_foretold_together_by_what_was_learnt() -> None:
    class Learned:
        def predict(self, spans_NSLE: Array) -> Array:
            assert spans_NSLE.shape == (2, len(SPAN_TOKENS), *SHAPE)
            return np.full((2, *SHAPE), 0.25, dtype=np.float32)

    running = RunningForecast(SHAPE, Learned()).update([request("a", routed(0)), request("b", routed(1))])
    np.testing.assert_allclose(running.demand, [[5, 5, 5, 5]])
