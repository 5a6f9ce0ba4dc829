"""What the predictor keeps of models and tasks: enough to predict, never without bound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.profiles import leaning

from emoe.core.errors import InvalidRequestError
from emoe.core.experts import CountGrid, ExpertGrid, RoutingRule
from emoe.core.tasks import UNKNOWN
from emoe.predictor.contest import Beforehand
from emoe.predictor.learning import Learning

GRID = ExpertGrid(num_layers=3, moe_layers=(1, 2), rule=RoutingRule(num_experts=4, top_k=2), expert_bytes=64)


def counts(index: int, num_choices: int = 100) -> CountGrid:
    grid = np.zeros(GRID.shape, dtype=np.int64)
    grid[1:, index] = num_choices
    return grid


def test_a_model_never_seen_has_uniform_demand_and_is_not_kept() -> None:
    learning = Learning(half_life_tokens=1000)
    prediction = learning.predict("new", GRID, {"code": 8.0})
    assert prediction.demand.tolist() == [[0.0] * 4, [2.0] * 4, [2.0] * 4]
    assert prediction.num_choices_learnt == 0
    assert learning.memories() == ()


def test_models_learn_apart() -> None:
    learning = Learning(half_life_tokens=1000)
    learning.observe("a", GRID, "code", counts(0, 10_000))
    learning.observe("b", GRID, "code", counts(3, 10_000))
    assert learning.predict("a", GRID, {"code": 1.0}).demand[1].argmax() == 0
    assert learning.predict("b", GRID, {"code": 1.0}).demand[1].argmax() == 3


def test_choices_learnt_are_of_the_tasks_asked_for() -> None:
    learning = Learning(half_life_tokens=1000)
    learning.observe("a", GRID, "code", counts(0, 10))
    learning.observe("a", GRID, "math", counts(1, 5))
    assert learning.predict("a", GRID, {"code": 1.0}).num_choices_learnt == 20
    assert learning.predict("a", GRID, {"chat": 1.0}).num_choices_learnt == 0
    assert learning.predict("a", GRID, {UNKNOWN: 1.0}).num_choices_learnt == 30
    assert learning.predict("a", GRID, {}).num_choices_learnt == 30


@given(tasks=st.lists(st.sampled_from([f"task{n}" for n in range(8)]), max_size=30))
def test_the_least_recently_observed_task_is_forgotten_first(tasks: list[str]) -> None:
    learning = Learning(half_life_tokens=1000, max_tasks=3)
    for task in tasks:
        learning.observe("a", GRID, task, counts(0))
    kept = [memory.task for model in learning.memories() for memory in model.tasks]
    recent = list(dict.fromkeys(reversed(tasks)))[:3]
    assert kept == list(reversed(recent))


def test_the_least_recently_observed_model_is_forgotten_first() -> None:
    learning = Learning(half_life_tokens=1000, max_models=2)
    for digest in ("a", "b", "a", "c"):
        learning.observe(digest, GRID, "code", counts(0))
    assert [memory.digest for memory in learning.memories()] == ["a", "c"]


def test_a_count_halves_after_the_half_life_in_tokens_not_choices() -> None:
    learning = Learning(half_life_tokens=50)
    learning.observe("a", GRID, "code", counts(0, 100))
    learning.observe("a", GRID, "code", counts(1, 100))
    (model,) = learning.memories()
    assert model.tasks[0].weights[1].tolist() == [50.0, 100.0, 0.0, 0.0]


def test_a_digest_known_with_another_grid_is_refused() -> None:
    learning = Learning(half_life_tokens=1000)
    learning.observe("a", GRID, "code", counts(0))
    other = ExpertGrid(num_layers=3, moe_layers=(0, 1, 2), rule=GRID.rule, expert_bytes=64)
    with pytest.raises(InvalidRequestError, match="model a is known with"):
        learning.predict("a", other, {})
    with pytest.raises(InvalidRequestError, match="model a is known with"):
        learning.observe("a", other, "code", counts(0))


def test_counts_in_a_dense_layer_are_refused() -> None:
    wrong = counts(0)
    wrong[0, 0] = 1
    learning = Learning(half_life_tokens=1000)
    with pytest.raises(InvalidRequestError, match="layers that have none"):
        learning.observe("a", GRID, "code", wrong)
    assert learning.memories() == ()


def test_what_is_remembered_predicts_as_before() -> None:
    before, after = Learning(half_life_tokens=1000), Learning(half_life_tokens=1000)
    for task, index in (("code", 0), ("math", 3), ("code", 1)):
        before.observe("a", GRID, task, counts(index))
    after.remember(before.memories())
    for mix in ({"code": 3.0}, {"math": 1.0, "chat": 2.0}, {}):
        old, new = before.predict("a", GRID, mix), after.predict("a", GRID, mix)
        assert (old.demand == new.demand).all()
        assert old.num_choices_learnt == new.num_choices_learnt


BEGINNING = Beforehand(
    priors={"code": leaning(GRID.shape, GRID.moe_layers, 2)}, sensitivity={"code": np.array([1.0, 0.0, 1.0])}
)


def test_a_profile_is_of_one_model_and_known_of_afterwards() -> None:
    learning = Learning(half_life_tokens=1000)
    learning.begin_from("a", GRID, BEGINNING, sha256="1")
    own, other = (learning.predict(digest, GRID, {"code": 1.0}) for digest in ("a", "b"))
    assert (own.has_profile, other.has_profile) == (True, False)
    assert own.demand[2].argmax() == 2
    assert own.demand[1].tolist() == [0.0] * 4, "an insensitive layer"
    assert own.num_choices_learnt == 0


def test_the_same_profile_again_leaves_the_contest_as_it_was() -> None:
    learning = Learning(half_life_tokens=1000)
    for sha256, stepped_back in (("1", True), ("1", True), ("2", False)):
        learning.begin_from("a", GRID, BEGINNING, sha256=sha256)
        if sha256 == "1":
            learning.observe("a", GRID, "code", counts(0, 2000))
        assert learning.predict("a", GRID, {"code": 1.0}).stepped_back is stepped_back


def test_what_is_remembered_lacks_the_profile_but_keeps_the_counts_when_it_comes() -> None:
    before, after = Learning(half_life_tokens=1e9), Learning(half_life_tokens=1e9)
    for learning in (before, after):
        learning.begin_from("a", GRID, BEGINNING, sha256="1")
    before.observe("a", GRID, "code", counts(3, 100_000))
    after.remember(before.memories())
    assert not after.predict("a", GRID, {"code": 1.0}).has_profile
    after.begin_from("a", GRID, BEGINNING, sha256="1")
    old, new = before.predict("a", GRID, {"code": 1.0}), after.predict("a", GRID, {"code": 1.0})
    assert new.has_profile
    assert new.demand[2].argmax() == old.demand[2].argmax() == 3


def test_a_profile_for_another_grid_of_a_known_model_is_refused() -> None:
    learning = Learning(half_life_tokens=1000)
    learning.observe("a", GRID, "code", counts(0))
    other = ExpertGrid(num_layers=3, moe_layers=(0, 1, 2), rule=GRID.rule, expert_bytes=64)
    with pytest.raises(InvalidRequestError, match="model a is known with"):
        learning.begin_from("a", other, BEGINNING, sha256="1")


def test_memories_are_copies() -> None:
    learning = Learning(half_life_tokens=1000)
    learning.observe("a", GRID, "code", counts(0))
    (model,) = learning.memories()
    learning.observe("a", GRID, "code", counts(0))
    assert model.tasks[0].weights[1, 0] == 100.0
