from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from emoe.cli.runfile import (
    UP_FILE,
    StateDirBusyError,
    find_running_system,
    locked_state_dir,
    remove_up_file,
    start_ticks,
    write_up_file,
)


def rewrite(state_dir: Path, **fields: object) -> None:
    path = state_dir / UP_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_running_system_is_found(tmp_path: Path) -> None:
    write_up_file(tmp_path, model="m", scheduler="127.0.0.1:5", loader="127.0.0.1:6")
    system = find_running_system(tmp_path)
    assert system is not None
    assert (system.scheduler, system.loader, system.pid) == ("127.0.0.1:5", "127.0.0.1:6", os.getpid())


def test_nothing_is_found_once_the_file_is_removed(tmp_path: Path) -> None:
    write_up_file(tmp_path, model="m", scheduler="s", loader="l")
    remove_up_file(tmp_path)
    assert find_running_system(tmp_path) is None


def test_the_file_of_a_dead_process_is_stale(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    write_up_file(tmp_path, model="m", scheduler="s", loader="l")
    rewrite(tmp_path, pid=dead.pid)
    assert find_running_system(tmp_path) is None


def test_the_file_of_a_process_whose_pid_was_reused_is_stale(tmp_path: Path) -> None:
    write_up_file(tmp_path, model="m", scheduler="s", loader="l")
    rewrite(tmp_path, start_ticks=1)
    assert find_running_system(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", '{"pid": 1}'], ids=["empty", "list", "half"])
def test_a_file_that_is_none_of_ours_names_no_system(tmp_path: Path, text: str) -> None:
    (tmp_path / UP_FILE).write_text(text)
    assert find_running_system(tmp_path) is None


def test_start_ticks_differ_between_processes_and_not_between_looks() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        first = start_ticks(child.pid)
        assert first is not None
        assert first == start_ticks(child.pid)
    finally:
        child.communicate(b"\n")
    assert start_ticks(child.pid) is None


def test_a_state_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with locked_state_dir(tmp_path), pytest.raises(StateDirBusyError, match=str(tmp_path)), locked_state_dir(tmp_path):
        pass
    with locked_state_dir(tmp_path):
        pass
