from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import store_samples

from emoe.store.store import ExpertStore


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or leaves anything in the user's own cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))
    return tmp_path / "cache-home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint in one file."""
    return store_samples.write(tmp_path / "model", store_samples.config(), store_samples.tensors())


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The same in three files, experts cut across them."""
    return store_samples.write(tmp_path / "sharded", store_samples.config(), store_samples.tensors(), num_shards=3)


@pytest.fixture
def store(folder: Path) -> Iterator[ExpertStore]:
    with ExpertStore.open(folder) as opened:
        yield opened
