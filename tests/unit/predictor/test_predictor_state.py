"""What was learnt survives on disk, and a damaged file never stops the predictor."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emoe.core.experts import ExpertGrid, RoutingRule
from emoe.predictor import state
from emoe.predictor.learning import ModelMemory, TaskMemory

GRID = ExpertGrid(num_layers=2, moe_layers=(1,), rule=RoutingRule(num_experts=4, top_k=2), expert_bytes=64)


def memory(digest: str, *tasks: str) -> ModelMemory:
    kept = [
        TaskMemory(task=task, weights=np.arange(8.0).reshape(2, 4) + n, num_choices=n) for n, task in enumerate(tasks)
    ]
    return ModelMemory(digest=digest, grid=GRID, tasks=tuple(kept))


def as_plain(memories: tuple[ModelMemory, ...]) -> object:
    return [(m.digest, m.grid, [(t.task, t.num_choices, t.weights.tolist()) for t in m.tasks]) for m in memories]


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = (memory("a", "code", "math"), memory("b", "chat"))
    state.save(tmp_path, saved)
    assert as_plain(state.load(tmp_path)) == as_plain(saved)


def test_an_empty_folder_is_a_fresh_start(tmp_path: Path) -> None:
    assert state.load(tmp_path) == ()
    assert list(tmp_path.iterdir()) == []


def test_a_save_replaces_the_last_and_leaves_one_file(tmp_path: Path) -> None:
    state.save(tmp_path, [memory("a", "code")])
    state.save(tmp_path, [memory("b", "math")])
    assert [m.digest for m in state.load(tmp_path)] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == [state.FILE_NAME]


def test_a_save_that_was_cut_off_leaves_the_last_one_whole(tmp_path: Path) -> None:
    state.save(tmp_path, [memory("a", "code")])
    (tmp_path / f"{state.FILE_NAME}.partial").write_bytes(state.FORMAT + b"half a")
    assert [m.digest for m in state.load(tmp_path)] == ["a"]
    state.save(tmp_path, [memory("b", "code")])
    assert [path.name for path in tmp_path.iterdir()] == [state.FILE_NAME]


@pytest.mark.parametrize(
    "content",
    [b"", b"not ours", state.FORMAT, state.FORMAT + bytes(64)],
    ids=["empty", "foreign", "cut", "wrong-checksum"],
)
def test_an_unreadable_file_is_moved_aside_with_a_log(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / state.FILE_NAME).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert state.load(tmp_path) == ()
    assert [path.name for path in tmp_path.iterdir()] == [f"{state.FILE_NAME}.corrupt"]
    assert (tmp_path / f"{state.FILE_NAME}.corrupt").read_bytes() == content
    assert "learning starts afresh" in caplog.text


def test_another_format_version_is_moved_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "FORMAT", b"emoe predictor state 2\n")
    state.save(tmp_path, [memory("a", "code")])
    monkeypatch.undo()
    assert state.load(tmp_path) == ()
    assert (tmp_path / f"{state.FILE_NAME}.corrupt").exists()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0], ids=["nan", "infinite", "negative"])
def test_weights_that_no_counts_could_give_are_moved_aside(tmp_path: Path, bad: float) -> None:
    wrong = TaskMemory(task="code", weights=np.full(GRID.shape, bad), num_choices=1)
    state.save(tmp_path, [ModelMemory(digest="a", grid=GRID, tasks=(wrong,))])
    assert state.load(tmp_path) == ()


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
def test_any_damage_is_either_harmless_or_moved_aside(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / state.FILE_NAME
    saved = (memory("a", "code", "math"),)
    state.save(tmp_path, saved)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[position] ^= data.draw(st.integers(1, 255))
    else:
        del content[position:]
    path.write_bytes(content)
    loaded = state.load(tmp_path)
    assert as_plain(loaded) == as_plain(saved) or (loaded == () and not path.exists())
