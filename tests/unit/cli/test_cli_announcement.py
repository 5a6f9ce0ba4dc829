from __future__ import annotations

import os
from pathlib import Path

import pytest

from emoe.cli.announcement import read_announcement
from emoe.runtime.process import announce


def test_what_a_service_announces_is_read(tmp_path: Path) -> None:
    announce(tmp_path / "a.json", service="loader", address="127.0.0.1:1", health_address="127.0.0.1:2")
    announcement = read_announcement(tmp_path / "a.json", pid=os.getpid())
    assert announcement is not None
    assert (announcement.service, announcement.address, announcement.health_address) == (
        "loader",
        "127.0.0.1:1",
        "127.0.0.1:2",
    )


def test_another_process_announcement_does_not_count(tmp_path: Path) -> None:
    announce(tmp_path / "a.json", service="loader", address="127.0.0.1:1", health_address="127.0.0.1:2")
    assert read_announcement(tmp_path / "a.json", pid=os.getpid() + 1) is None


def test_there_is_none_before_the_service_wrote_it(tmp_path: Path) -> None:
    assert read_announcement(tmp_path / "a.json", pid=1) is None


@pytest.mark.parametrize("text", ["", "[1]", '{"pid": 1}'], ids=["empty", "list", "half"])
def test_a_foreign_file_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="is not an announcement"):
        read_announcement(tmp_path / "a.json", pid=1)
