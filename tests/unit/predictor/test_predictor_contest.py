"""A model's predictors against one another: the profile is gone by while it holds up, and no longer."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.profiles import leaning

from emoe.core.demand import FrequencyPredictor
from emoe.core.experts import CountGrid, ExpertGrid, FloatGrid, RoutingRule
from emoe.core.tasks import UNKNOWN
from emoe.predictor.contest import Beforehand, Contest, Evidence

GRID = ExpertGrid(num_layers=3, moe_layers=(1, 2), rule=RoutingRule(num_experts=8, top_k=2), expert_bytes=64)
TASKS = {"code": 1, "math": 3, "chat": 6}
PROMPT_TOKENS = 200


def skewed(index: int) -> FloatGrid:
    """[L, E]: a task's routing, with a favourite, a second and a rest as real routers have them."""
    grid = leaning(GRID.shape, GRID.moe_layers, index, 0.4)
    return 0.7 * grid + 0.3 * leaning(GRID.shape, GRID.moe_layers, (index + 1) % 8, 0.6)


TRUTH = {task: skewed(index) for task, index in TASKS.items()}
WRONG = {task: np.roll(grid, 4, axis=1) for task, grid in TRUTH.items()}
"""The profile of other weights: as skewed, of other experts."""


def prompt(task: str, random: np.random.Generator) -> CountGrid:
    counts = np.zeros(GRID.shape, dtype=np.int64)
    for layer in GRID.moe_layers:
        counts[layer] = random.multinomial(PROMPT_TOKENS * GRID.rule.top_k, TRUTH[task][layer])
    return counts


def contest(priors: Mapping[str, FloatGrid] | None = None, **beforehand: object) -> Contest:
    begun = Contest("a" * 64, GRID, Evidence(half_life_tokens=50_000, profile_tokens=2000))
    if priors is not None:
        begun.begin_from(Beforehand(**{"priors": priors, "sensitivity": {}, **beforehand}))  # type: ignore[arg-type]
    return begun


class Always:
    """A predictor that never learns."""

    def __init__(self, frequency: FloatGrid) -> None:
        self.frequency = frequency
        self.num_observed = 0

    def observe(self, _task: str, _counts: CountGrid) -> None:
        self.num_observed += 1

    def predict(self, task_tokens: Mapping[str, float]) -> FloatGrid:
        return sum(task_tokens.values()) * self.frequency


def test_without_a_profile_counts_answer_and_nobody_steps_back() -> None:
    plain = contest()
    plain.observe("code", prompt("code", np.random.default_rng(0)))
    foretold = plain.predict({"code": 8.0})
    assert (foretold.predictor, foretold.stepped_back) == ("counts", False)
    assert foretold.demand.sum(axis=1).tolist() == pytest.approx([0.0, 8.0, 8.0])


def test_a_profile_answers_from_the_first_question_on() -> None:
    foretold = contest(TRUTH).predict({"code": 8.0, "math": 2.0})
    assert foretold.demand == pytest.approx(8 * TRUTH["code"] + 2 * TRUTH["math"])
    assert (foretold.predictor, foretold.stepped_back) == ("frequency", False)


@given(seed=st.integers(0, 2**32 - 1), label_noise=st.sampled_from([0.0, 0.2, 0.4]))
@settings(deadline=None, max_examples=25)
def test_a_profile_that_fits_is_never_stepped_back_from(seed: int, label_noise: float) -> None:
    random = np.random.default_rng(seed)
    fitting = contest(TRUTH)
    for _ in range(30):
        task = str(random.choice(list(TASKS)))
        label = str(random.choice(list(TASKS))) if random.random() < label_noise else task
        fitting.observe(label, prompt(task, random))
        if not label_noise:
            assert not fitting.predict(dict.fromkeys(TASKS, 1.0)).stepped_back
    assert len(fitting.weights) == len(TASKS)


@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=25)
def test_a_profile_of_other_experts_is_stepped_back_from_within_few_prompts(seed: int) -> None:
    random = np.random.default_rng(seed)
    misled = contest(WRONG)
    for _ in range(4):
        misled.observe("code", prompt("code", random))
    foretold = misled.predict({"code": 1.0})
    assert (foretold.predictor, foretold.stepped_back) == ("counts", True)
    assert int(foretold.demand[1].argmax()) in (TASKS["code"], TASKS["code"] + 1)


def test_each_task_steps_back_by_itself_and_one_never_reported_with_most_others() -> None:
    random = np.random.default_rng(0)
    mixed = contest({**TRUTH, "code": WRONG["code"]})
    for _ in range(5):
        for task in ("code", "math", "math", "math"):
            mixed.observe(task, prompt(task, random))
    assert mixed.predict({"code": 1.0}).stepped_back
    assert not mixed.predict({"math": 1.0}).stepped_back
    assert not mixed.predict({"chat": 1.0}).stepped_back
    assert mixed.predict({"code": 1.0, "math": 9.0}).stepped_back
    assert mixed.predict({"code": 1.0, "math": 9.0}).predictor == "frequency"

    misled = contest(WRONG)
    for _ in range(5):
        misled.observe("math", prompt("math", random))
    assert misled.predict({"chat": 1.0}).stepped_back
    assert misled.predict({UNKNOWN: 1.0}).stepped_back


def test_it_goes_forward_again_and_says_so_once_each_way(caplog: pytest.LogCaptureFixture) -> None:
    random = np.random.default_rng(0)
    drifting = contest(priors={"code": TRUTH["math"]})
    standing = []
    with caplog.at_level(logging.INFO):
        for routed in ["code"] * 8 + ["math"] * 120:
            drifting.observe("code", prompt(routed, random))
            standing.append(drifting.predict({"code": 1.0}).predictor)
    assert standing.index("counts") <= 4
    assert standing[-1] == "frequency"
    told = [record.getMessage() for record in caplog.records if "task code" in record.getMessage()]
    assert ["stepping back" in text for text in told] == [True, False]
    assert "from predictor 'frequency' to 'counts'" in told[0]


def test_a_task_is_demanded_only_where_its_layers_are_sensitive() -> None:
    weighed = contest(TRUTH, sensitivity={"code": np.array([1.0, 0.0, 1.0]), "math": np.zeros(3)})
    assert weighed.predict({"code": 4.0}).demand == pytest.approx(4 * TRUTH["code"] * [[0], [0], [1]])
    assert not weighed.predict({"math": 4.0}).demand.any()
    assert weighed.predict({"chat": 4.0}).demand == pytest.approx(4 * TRUTH["chat"])


def test_insensitive_layers_hide_nothing_from_the_contest() -> None:
    random = np.random.default_rng(0)
    misled = contest(WRONG, sensitivity={"code": np.zeros(3)})
    for _ in range(4):
        misled.observe("code", prompt("code", random))
    assert misled.predict({"code": 1.0}).stepped_back


def test_a_sequence_predictor_goes_first_and_steps_back_to_the_profile_not_to_bare_counts() -> None:
    random = np.random.default_rng(0)
    sequence = Always(WRONG["code"])
    contested = contest(TRUTH, sequence=sequence)
    assert contested.predict({"code": 1.0}).predictor == "sequence"
    for _ in range(3):
        contested.observe("code", prompt("code", random))
    foretold = contested.predict({"code": 1.0})
    assert (foretold.predictor, foretold.stepped_back) == ("frequency", True)
    assert sequence.num_observed == 3, "it keeps learning meanwhile"


def test_a_sequence_predictor_that_knows_better_stays() -> None:
    random = np.random.default_rng(0)
    contested = contest(WRONG, sequence=Always(TRUTH["code"]))
    for _ in range(10):
        contested.observe("code", prompt("code", random))
    foretold = contested.predict({"code": 1.0})
    assert (foretold.predictor, foretold.stepped_back) == ("sequence", False)


def test_a_profile_that_comes_late_goes_on_from_the_counts() -> None:
    random = np.random.default_rng(0)
    late = contest()
    for _ in range(200):
        late.observe("code", prompt("math", random))
    late.begin_from(Beforehand(priors={"code": TRUTH["code"]}, sensitivity={}))
    assert int(late.predict({"code": 1.0}).demand[1].argmax()) in (TASKS["math"], TASKS["math"] + 1)


def test_tasks_in_the_contest_are_bounded() -> None:
    random = np.random.default_rng(0)
    small = Contest("a" * 64, GRID, Evidence(half_life_tokens=1000, profile_tokens=2000, max_tasks=2))
    small.begin_from(Beforehand(priors=WRONG, sensitivity={}))
    for task in ("one", "two", "three", "four"):
        small.observe(task, prompt("code", random))
    assert list(small.weights) == ["three", "four"]


def test_a_question_takes_under_20_ms_on_a_large_model() -> None:
    """48 layers of 128 experts, 64 tasks counted, a profile of 8: the bar is for one core."""
    import time

    grid = ExpertGrid(
        num_layers=48, moe_layers=tuple(range(48)), rule=RoutingRule(num_experts=128, top_k=8), expert_bytes=64
    )
    random = np.random.default_rng(0)
    large = Contest("a" * 64, grid, Evidence(half_life_tokens=50_000, profile_tokens=2000))
    profiled = {f"task{n}": random.dirichlet(np.ones(128), 48) for n in range(8)}
    large.begin_from(Beforehand(priors=profiled, sensitivity={}, sequence=FrequencyPredictor(grid.shape)))
    for n in range(64):
        large.observe(f"task{n}", random.integers(0, 100, grid.shape))
    spent = []
    for _ in range(5):
        began = time.process_time()
        large.predict({"task1": 1.0, "never-seen": 1.0})
        spent.append(time.process_time() - began)
    assert min(spent) < 0.020
