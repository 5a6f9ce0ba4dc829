"""Names of strategies, what runs beside them, and plans from what may be known."""

from __future__ import annotations

import numpy as np
import pytest

from emoe.core.experts import ExpertGrid, RoutingRule
from emoe.core.planning import PLANNERS
from emoe.eval.memory import PromptMemory
from emoe.eval.profile import Moments, RoutingProfile
from emoe.eval.rows import EncodedRow
from emoe.eval.strategies import BASELINES, STRATEGIES, Known, Variant, choose_variants
from emoe.eval.streams import Running

GRID = ExpertGrid(num_layers=2, moe_layers=(1,), rule=RoutingRule(num_experts=8, top_k=2), expert_bytes=10)


def on(*experts: int) -> np.ndarray:
    grid = np.zeros(GRID.shape)
    grid[1, list(experts)] = 1 / len(experts)
    return grid


@pytest.fixture
def known() -> Known:
    """Tasks a and b want experts 0, 1 and 2, 3; prompts like (1, 0) go on with 4, 5, those like (0, 1) with 6, 7."""
    kinds = np.array([0, 1] * 30)
    answers = np.stack([on(4 + 2 * kind, 5 + 2 * kind) for kind in kinds]).astype(np.float32)
    frequencies = {"a": on(0, 1), "b": on(2, 3)}
    memory = PromptMemory(
        embeddings=np.eye(2, dtype=np.float32)[kinds],
        first_gates=np.eye(8, dtype=np.float32)[kinds],
        answers=answers,
        moments=Moments(spans=answers[:, None, :, ::-1], futures=answers, num_tokens=np.full(60, 9)),
    )
    profile = RoutingProfile(
        frequencies=frequencies,
        routed_frequencies=frequencies,
        sensitive={},
        answer_tokens={},
        own_routing=None,
    )
    return Known(profile=profile, memory=memory, grid=GRID, num_slots=2, planner=PLANNERS["global"])


def asked(task: str = "a", kind: int = 0) -> Running:
    row = EncodedRow(task=task, token_ids=(1, 2, 3), num_prompt_tokens=2)
    embedding, first_gate = np.eye(2, dtype=np.float32)[kind], np.eye(8, dtype=np.float32)[kind]
    return Running(
        row=row, task=task, embedding=embedding, first_gate=first_gate, future=[(100 * on(3, 5)).astype(int)]
    )


def residents(known: Known, name: str, *running: Running) -> list[int]:
    plan = STRATEGIES[name].build(known).plan(running)
    assert plan is not None
    assert not plan[0].any()
    return np.flatnonzero(plan[1]).tolist()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("task-frequency", [2, 3]),
        ("emoe", [2, 3]),
        ("retrieval-embedding", [6, 7]),
        ("retrieval-first-gate", [6, 7]),
        ("retrieval-trajectory", [6, 7]),
        ("oracle", [3, 5]),
    ],
)
def test_before_anything_ran_a_strategy_goes_by_task_prompt_or_hindsight(
    known: Known, name: str, expected: list[int]
) -> None:
    assert residents(known, name, asked("b", kind=1)) == expected


def test_a_trajectory_outweighs_the_prompt_it_began_with(known: Known) -> None:
    request = asked(kind=0)
    # Those that routed 0, 1 so far went on with 6, 7: the memory has futures the other way round.
    request.wanted = (100 * on(0, 1)).astype(int)
    request.phases.append(request.wanted)
    assert residents(known, "retrieval-trajectory", request) == [6, 7]
    assert residents(known, "retrieval-embedding", request) == [4, 5]


def test_without_what_was_learnt_own_routing_is_blended_with_the_tasks(known: Known) -> None:
    request = asked("a")
    request.wanted = np.array([[0] * 8, [0, 9, 0, 0, 0, 0, 1, 0]])
    request.phases.append(request.wanted)
    # Its own say 0.9 and 0.1 of experts 1 and 6, seven tenths of all; its task 0.5 and 0.5 of 0 and 1.
    assert residents(known, "emoe", request) == [0, 1]
    request.wanted = np.array([[0] * 8, [0, 6, 0, 0, 0, 0, 4, 0]])
    assert residents(known, "emoe", request) == [1, 6]


@pytest.mark.parametrize("name", ["emoe", "emoe-shuffled", "emoe-calibrated", "oracle-calibrated-shuffled"])
def test_a_variant_is_named_as_it_was_asked_for(name: str) -> None:
    assert Variant.parse(name).name == name


@pytest.mark.parametrize("name", ["psychic", "emoe-shuffled-calibrated", "", "all-resident"])
def test_other_names_are_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(ValueError, match="global-frequency"):
        Variant.parse(name)


def test_baselines_and_shuffled_labels_run_whatever_is_asked_for() -> None:
    names = [variant.name for variant in choose_variants(["emoe-calibrated"], has_calibration=True)]
    assert {*BASELINES, "task-frequency-shuffled", "emoe-calibrated", "emoe-calibrated-shuffled"} == set(names)
    assert len(names) == len(set(names))


def test_calibrated_strategies_run_unasked_only_with_a_calibration() -> None:
    without, with_one = (choose_variants((), has_calibration=has) for has in (False, True))
    assert {variant.base for variant in without} == set(STRATEGIES)
    assert not any(variant.calibrated for variant in without)
    assert Variant("emoe", calibrated=True) in with_one
