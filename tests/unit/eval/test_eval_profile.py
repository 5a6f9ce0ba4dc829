"""From recorded routing, and from the profile file: the same frequencies, and moments that never see what comes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from support.profiles import leaning, profile, task_profile

from emoe.core.errors import CheckpointError
from emoe.core.experts import ExpertGrid, RoutingRule
from emoe.eval.profile import build_profile, find_moments, routing_profile_from, split_frequencies
from emoe.eval.recording import RowRouting, pack_steps, spans_of
from emoe.store.learned import write_arrays

GRID = ExpertGrid(num_layers=3, moe_layers=(0, 2), rule=RoutingRule(num_experts=6, top_k=2), expert_bytes=1)


def row(task: str, *, num_prompt: int, num_run: int, seed: int = 0) -> RowRouting:
    """Prompts choose among the first three experts, answers among the last three."""
    random = np.random.default_rng(seed)
    drawn = random.random((num_run, len(GRID.moe_layers), 3)).argsort(axis=-1)[..., : GRID.rule.top_k]
    drawn[num_prompt:] += 3
    return RowRouting(
        task=task,
        num_prompt_tokens=num_prompt,
        num_response_tokens=num_run - num_prompt + 1,
        ids=drawn.astype(np.uint8),
    )


def rows(num: int = 6) -> list[RowRouting]:
    return [row("code", num_prompt=20, num_run=20 + 10 * number, seed=number) for number in range(1, num + 1)]


def test_prompts_and_answers_are_counted_apart_and_every_token_alike() -> None:
    prompts, answers = split_frequencies(rows(), GRID)
    for grid, experts in ((prompts, slice(0, 3)), (answers, slice(3, 6))):
        assert grid[[0, 2], experts].sum(axis=1) == pytest.approx([1.0, 1.0])
        assert not grid[1].any()
    counted = np.sum([one.count(GRID, 20) for one in rows()], axis=0)
    assert answers[0] == pytest.approx(counted[0] / counted[0].sum())


def test_answers_of_one_token_that_never_ran_count_as_their_prompts() -> None:
    prompts, answers = split_frequencies([row("code", num_prompt=8, num_run=8)], GRID)
    assert np.array_equal(prompts, answers)
    assert prompts[0].sum() == pytest.approx(1.0)


def test_moments_know_what_was_routed_and_not_what_comes() -> None:
    moments = find_moments(rows(), GRID)
    lengths = [10, 20, 30, 40, 8, 50, 18, 60, 28]
    assert sorted(moments.num_tokens.tolist()) == sorted(lengths), "after the prompt, and 32 tokens later"
    assert not moments.futures[:, 0, :3].any()
    fresh = moments.spans[:, 0, 0, 3:].sum(axis=-1) == 0
    assert fresh.sum() == len(rows())
    assert moments.spans[:, :, [0, 2]].sum(axis=-1) == pytest.approx(1.0)


def test_spans_are_of_the_latest_tokens() -> None:
    ids = np.zeros((100, 2, 1), dtype=np.uint8)
    ids[-16:], ids[-64:-16] = 1, 2
    everything, latest, very_latest = spans_of(ids, GRID)[:, 0]
    assert everything.tolist() == pytest.approx([0.36, 0.16, 0.48, 0, 0, 0])
    assert latest.tolist() == [0, 0.25, 0.75, 0, 0, 0]
    assert very_latest.tolist() == [0, 1, 0, 0, 0, 0]


def test_a_profile_in_memory_is_of_every_task() -> None:
    other = [row("math", num_prompt=9, num_run=30, seed=9)]
    made = build_profile(rows() + other, GRID)
    assert set(made.frequencies) == set(made.routed_frequencies) == set(made.sensitive) == {"code", "math"}
    assert made.answer_tokens == {"code": 36.0, "math": 22.0}
    assert np.array_equal(made.of("never-seen"), np.mean([made.of("code"), made.of("math")], axis=0))
    assert np.array_equal(made.of_requests("never-seen"), made.mean())
    assert np.allclose(made.of_requests("code").sum(axis=1), made.of("code").sum(axis=1))
    assert made.own_routing is not None
    predicted = made.own_routing.predict(rows()[0].spans(GRID, 20)[None])
    assert predicted[0, 0, 3:].sum() > 0.9, "after prompts come answers"


def test_a_profile_whose_answers_never_ran_foretells_nothing_of_its_own() -> None:
    made = build_profile([row("code", num_prompt=8, num_run=8)], GRID)
    assert made.own_routing is None


def from_file(learned: bytes | None):  # type: ignore[no-untyped-def]
    lean = [leaning(GRID.shape, GRID.moe_layers, index) for index in (1, 2)]
    tasks = {"code": task_profile(lean[0], lean[1], answer_tokens=30.0, similarity=(0.9, 0.5))}
    sha256 = learned and hashlib.sha256(learned).hexdigest()
    return routing_profile_from(
        profile(tasks, shape=GRID.shape, moe_layers=GRID.moe_layers, learned_sha256=sha256), learned
    )


def test_the_file_says_what_strategies_plan_from() -> None:
    own_routing = build_profile(rows(), GRID).own_routing
    assert own_routing is not None
    found = from_file(write_arrays(own_routing.arrays()))
    assert found.of("code").argmax(axis=1).tolist() == [2, 0, 2]
    assert {*found.of_requests("code")[0].nonzero()[0]} >= {1, 2}
    assert found.sensitive["code"].tolist() == [0, 1, 1]
    assert found.answer_tokens == {"code": 30.0}
    spans = rows()[0].spans(GRID, 20)[None]
    assert found.own_routing is not None
    assert found.own_routing.predict(spans) == pytest.approx(own_routing.predict(spans), abs=5e-3)
    assert from_file(None).own_routing is None


def test_learned_arrays_of_another_shape_are_refused() -> None:
    other = ExpertGrid(num_layers=3, moe_layers=(0, 2), rule=RoutingRule(num_experts=8, top_k=2), expert_bytes=1)
    own_routing = build_profile(rows(), other).own_routing
    assert own_routing is not None
    with pytest.raises(CheckpointError, match=r"\(3, 8\)"):
        from_file(write_arrays(own_routing.arrays()))
    with pytest.raises(CheckpointError, match="emoe profile"):
        from_file(write_arrays({**own_routing.arrays(), "own_routing/mean": np.zeros(3, dtype=np.float32)}))


def test_steps_are_filled_and_nothing_is_left_out() -> None:
    steps = list(pack_steps([3, 3, 3, 9, 1, 1, 1], cost=int, max_items=2, max_cost=6))
    assert steps == [[3, 3], [3], [9], [1, 1], [1]]
