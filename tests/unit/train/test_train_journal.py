"""The work file of a long run: what was kept is found again, what was torn is dropped, another run's is not used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emoe.core.errors import InvalidRequestError
from emoe.train.journal import Journal

IDENTITY = {"weights": "a", "rows": "b", "options": "c"}


def write(path: Path, numbers: range, identity: dict[str, str] = IDENTITY) -> list[str]:
    said: list[str] = []
    with Journal.open(path, identity, say=said.append) as journal:
        for number in numbers:
            journal.append({"number": str(number)}, {"values": np.arange(number, dtype=np.int64)})
    return said


def read(path: Path, identity: dict[str, str] = IDENTITY) -> list[int]:
    with Journal.open(path, identity, say=lambda _: None) as journal:
        found = list(journal.records())
    assert all(int(metadata["number"]) == len(arrays["values"]) for metadata, arrays in found)
    return [int(metadata["number"]) for metadata, _ in found]


def test_what_was_kept_is_found_and_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "work"
    assert write(path, range(3)) == []
    assert write(path, range(3, 5)) == []
    assert read(path) == [0, 1, 2, 3, 4]


def test_records_are_read_as_often_as_wanted_and_more_may_follow(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "work", IDENTITY, say=lambda _: None) as journal:
        for number in range(3):
            assert len(list(journal.records())) == number
            journal.append({"number": str(number)}, {})
        next(journal.records())
        journal.append({"number": "3"}, {})
        assert len(list(journal.records())) == 4


@pytest.mark.parametrize("cut", [1, 9, 40], ids=["one byte", "in the record", "in its length"])
def test_what_was_torn_off_is_dropped_and_written_anew(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "work"
    write(path, range(2))
    whole = path.stat().st_size
    write(path, range(2, 3))
    frame = path.stat().st_size - whole
    path.write_bytes(path.read_bytes()[: -min(cut, frame - 1)])
    write(path, range(3, 4))
    assert read(path) == [0, 1, 3]


def test_an_altered_record_ends_what_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "work"
    write(path, range(3))
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert read(path) == [0, 1]


@pytest.mark.parametrize("key", sorted(IDENTITY))
def test_another_runs_work_is_not_used_and_the_difference_is_named(tmp_path: Path, key: str) -> None:
    path = tmp_path / "work"
    write(path, range(3))
    (line,) = write(path, range(1), IDENTITY | {key: "other"})
    assert f"other {key}:" in line
    assert read(path, IDENTITY | {key: "other"}) == [0]


def test_a_file_that_is_no_work_file_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "work"
    path.write_bytes(b"something else altogether, and long enough")
    (line,) = write(path, range(1))
    assert "cannot be read" in line
    assert read(path) == [0]


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "work"
    with (
        Journal.open(path, IDENTITY, say=lambda _: None),
        pytest.raises(InvalidRequestError, match="another run"),
        Journal.open(path, IDENTITY, say=lambda _: None),
    ):
        pass
    assert read(path) == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="--out"), Journal.open(tmp_path / "no" / "work", {}, say=print):
        pass
