"""Where tasks are at home: everybody has work, like stays with like, and nothing moves without a reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emoe.loader.homes import Homes, Situation, settle

LOADS = {"chat": 40.0, "code": 20.0, "math": 14.0, "qa": 12.0, "law": 8.0, "translation": 6.0}


def situation(
    loads: Mapping[str, float], workers: Sequence[str], *, alike: float = 0.3, suited: Mapping[str, str] | None = None
) -> Situation:
    """`suited`: task -> the worker whose residents suit it."""
    tasks = tuple(sorted(loads))
    suits = [[float((suited or {}).get(task) == worker) for task in tasks] for worker in workers]
    return Situation(
        workers=tuple(workers),
        tasks=tasks,
        loads=np.array([loads[task] for task in tasks]),
        room=np.full(len(workers), 1 / len(workers)),
        alike=np.where(np.eye(len(tasks)) > 0, 1.0, alike),
        suits=np.array(suits),
    )


def named(number: int) -> list[str]:
    return [f"w{index}" for index in range(number)]


def homes_of(homes: Homes, task: str) -> set[str]:
    return {worker for worker, tasks in homes.items() if task in tasks}


def filled(homes: Homes, loads: Mapping[str, float]) -> dict[str, float]:
    """Of each worker's fair part."""
    fair = sum(loads.values()) / len(homes)
    return {one: sum(share * loads[task] for task, share in tasks.items()) / fair for one, tasks in homes.items()}


@given(
    loads=st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 1e6), min_size=1),
    before=st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 1e6), min_size=1),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
@settings(deadline=None)
def test_every_task_is_at_home_whole_whatever_was_before(
    loads: dict[str, float], before: dict[str, float], sizes: tuple[int, int]
) -> None:
    stood = settle({}, situation(before, named(sizes[0])))
    homes = settle(stood, situation(loads, named(sizes[1])))
    assert list(homes) == named(sizes[1])
    for task in loads:
        assert sum(tasks.get(task, 0.0) for tasks in homes.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("number", [2, 3, 4, 8, 16])
def test_everybody_gets_about_a_fair_part_of_the_load(number: int) -> None:
    parts = filled(settle({}, situation(LOADS, named(number))), LOADS).values()
    assert max(parts) <= 1.3
    assert min(parts) >= 0.3


def test_a_large_task_has_workers_to_itself_and_small_ones_share() -> None:
    homes = settle({}, situation(LOADS, named(8)))
    assert sum(set(tasks) == {"chat"} for tasks in homes.values()) >= 2
    assert sum(len(tasks) for tasks in homes.values()) <= len(LOADS) + 8


def test_what_is_alike_is_at_home_together() -> None:
    tasks = ["a1", "b1", "a2", "b2"]
    now = situation(dict.fromkeys(tasks, 1.0), named(2))
    alike = np.array([[1.0 if one[0] == other[0] else 0.1 for other in now.tasks] for one in now.tasks])
    homes = settle({}, dataclasses.replace(now, alike=alike))
    assert sorted(sorted(tasks) for tasks in homes.values()) == [["a1", "a2"], ["b1", "b2"]]


def test_homes_stay_while_loads_waver() -> None:
    rng = np.random.default_rng(0)
    homes = settle({}, situation(LOADS, named(4)))
    places = {task: homes_of(homes, task) for task in LOADS}
    num_moves = 0
    for _ in range(300):
        wavering = {task: load * float(rng.uniform(0.75, 1.25)) for task, load in LOADS.items()}
        homes = settle(homes, situation(wavering, named(4)))
        moved = {task for task in LOADS if homes_of(homes, task) != places[task]}
        num_moves += len(moved)
        places = {task: homes_of(homes, task) for task in LOADS}
    assert num_moves <= 2


def test_a_new_task_finds_a_home_where_it_is_suited_and_moves_no_other() -> None:
    before = settle({}, situation(LOADS, named(4)))
    lightest = min(filled(before, LOADS).items(), key=lambda item: item[1])[0]
    homes = settle(before, situation(LOADS | {"new": 2.0}, named(4), suited={"new": lightest}))
    assert homes_of(homes, "new") == {lightest}
    assert all(homes_of(homes, task) == homes_of(before, task) for task in LOADS)


def test_a_worker_that_leaves_hands_its_tasks_over_and_hardly_any_other_moves() -> None:
    before = settle({}, situation(LOADS, named(4)))
    rest = named(4)[1:]
    assert homes_of(before, "chat") == {"w0", "w1"}
    homes = settle(before, situation(LOADS, rest))
    assert homes_of(homes, "chat") == {"w1"}
    assert sum(homes_of(homes, task) != homes_of(before, task) for task in LOADS if task != "chat") <= 1
    assert max(filled(homes, LOADS).values()) <= 1.3


def test_a_worker_that_joins_gets_its_part() -> None:
    before = settle({}, situation(LOADS, named(3)))
    homes = settle(before, situation(LOADS, named(4)))
    assert filled(homes, LOADS)["w3"] >= 0.5


def test_one_worker_is_home_to_all() -> None:
    assert settle({}, situation(LOADS, ["w"])) == {"w": dict.fromkeys(sorted(LOADS), 1.0)}
