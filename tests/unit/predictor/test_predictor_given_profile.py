"""A profile as the predictor takes it: mean requests' routing, sensitive layers, and nothing of another model."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
from support.profiles import leaning, profile, task_profile

from emoe.core.errors import InvalidRequestError
from emoe.core.experts import ExpertGrid, RoutingRule
from emoe.core.sequence_predictor import PREFIX
from emoe.predictor.profile import GivenProfile, ProfileUse, sensitivity_of
from emoe.store.learned import write_arrays
from emoe.store.profile import Profile, render_profile

GRID = ExpertGrid(num_layers=3, moe_layers=(1, 2), rule=RoutingRule(num_experts=4, top_k=2), expert_bytes=64)
CODE = leaning(GRID.shape, GRID.moe_layers, 1)
MATH = leaning(GRID.shape, GRID.moe_layers, 3)
TASKS = {
    "code": task_profile(CODE, MATH, prompt_tokens=30, answer_tokens=10, similarity=(0.95, 0.8)),
    "math": task_profile(MATH),
}


def made(**changes: object) -> Profile:
    return dataclasses.replace(profile(TASKS, shape=GRID.shape, moe_layers=GRID.moe_layers), **changes)  # type: ignore[arg-type]


def given(made_of: Profile | bytes, *, learned: bytes = b"", digest: str = "a" * 64) -> GivenProfile:
    raw = made_of if isinstance(made_of, bytes) else render_profile(made_of)
    return GivenProfile(digest=digest, grid=GRID, profile=raw, learned=learned)


def test_prompts_and_answers_weigh_by_their_lengths() -> None:
    assert TASKS["code"].routed_frequencies == pytest.approx(0.75 * CODE + 0.25 * MATH)


def test_a_task_without_lengths_is_taken_by_its_answers() -> None:
    assert task_profile(CODE, MATH, prompt_tokens=0, answer_tokens=0).routed_frequencies == pytest.approx(MATH)


@pytest.mark.parametrize(
    ("threshold", "code"),
    [(None, [1, 0, 1]), (0.85, [1, 0, 1]), (0.96, [1, 1, 1]), (0.5, [1, 0, 0])],
    ids=["the profile's", "the same", "above all", "below all"],
)
def test_a_layer_counts_where_random_routing_harms_the_task(threshold: float | None, code: list[int]) -> None:
    sensitivity = sensitivity_of(made(), threshold)
    assert sensitivity["code"].tolist() == code
    assert sensitivity["math"].tolist() == [1, 1, 1], "it was not measured"


@pytest.mark.parametrize("threshold", [1.0, 1.5])
def test_from_a_threshold_of_one_on_every_layer_counts(threshold: float) -> None:
    assert sensitivity_of(made(), threshold) == {}


def test_what_is_known_beforehand_are_frequencies_and_sensitivities() -> None:
    beforehand = ProfileUse().parse(given(made()))
    assert {task: grid.argmax(axis=1).tolist() for task, grid in beforehand.priors.items()} == {
        "code": [0, 1, 1],
        "math": [0, 3, 3],
    }
    assert beforehand.sensitivity["code"].tolist() == [1, 0, 1]
    assert beforehand.sequence is None


def uniform(shape: tuple[int, int], moe_layers: tuple[int, ...]) -> Profile:
    even = leaning(shape, moe_layers, 0, 1 / shape[1])
    return profile({"code": task_profile(even)}, shape=shape, moe_layers=moe_layers)


REFUSED = {
    "no JSON": (given(b"\x00"), "the profile of model"),
    "nothing": (given(b""), "the profile of model"),
    "another format": (given(render_profile(made()).replace(b"profile 1", b"profile 9")), "this version reads"),
    "another model": (given(made(digest="b" * 64)), "made from model bbbb"),
    "another shape": (given(uniform((3, 8), GRID.moe_layers)), "the profile has"),
    "other layers": (given(uniform(GRID.shape, (0, 1))), "the profile has"),
    "too many tasks": (given(made(tasks={f"t{n}": TASKS["math"] for n in range(300)})), "has 300 tasks"),
}


@pytest.mark.parametrize(("refused", "complaint"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_profile_of_the_model_is_refused_by_name(refused: GivenProfile, complaint: str) -> None:
    with pytest.raises(InvalidRequestError, match=complaint):
        ProfileUse().parse(refused)


def test_the_sequence_predictor_is_only_read_where_it_is_wanted() -> None:
    torn = given(made(), learned=write_arrays({PREFIX + "centre": np.zeros(8, np.float32)}))
    assert ProfileUse().parse(torn).sequence is None
    with pytest.raises(InvalidRequestError, match="what was trained with the profile of model a"):
        ProfileUse(with_sequence=True).parse(torn)
    with pytest.raises(InvalidRequestError, match="what was trained with the profile of model a"):
        ProfileUse(with_sequence=True).parse(given(made(), learned=b"torn"))


def test_without_a_trained_sequence_predictor_the_frequencies_answer_with_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert ProfileUse(with_sequence=True).parse(given(made())).sequence is None
    assert "no trained sequence predictor" in caplog.text


def test_other_bytes_are_another_profile() -> None:
    seen = {
        given(made()).sha256(),
        given(made()).sha256(),
        given(made(), learned=b"x").sha256(),
        given(made(fingerprint="e" * 64)).sha256(),
    }
    assert len(seen) == 3
