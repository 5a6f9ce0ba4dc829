"""What tests of several rooms share: small random checkpoints, written once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """family -> the folder of a float32 checkpoint. Read it, never change it."""
    saved: dict[str, Path] = {}

    def folder_of(family: str) -> Path:
        if family not in saved:
            from support import checkpoints

            saved[family] = checkpoints.save(family, tmp_path_factory.mktemp(family))
        return saved[family]

    return folder_of
