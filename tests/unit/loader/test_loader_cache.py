"""The cache of fetched models: whole or not there, and one writer a source; and how progress is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from emoe.loader.fetch.cache import ModelCache
from emoe.loader.fetch.failures import FetchError, Reason
from emoe.loader.fetch.remotes import RemoteFile
from emoe.loader.progress import Phase, Progress

ADDRESS = "hf://tiny/moe"
FILES = [RemoteFile(name="config.json", num_bytes=2)]


def fill(cache: ModelCache, revision: str = "one") -> Path:
    partial = cache.begin(ADDRESS, revision)
    (partial / "config.json").write_text("{}")
    return cache.finish(ADDRESS, revision, FILES)


def test_a_model_is_whole_only_once_it_is_finished(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    (cache.begin(ADDRESS, "one") / "config.json").write_text("{}")
    assert cache.whole(ADDRESS, "one") is None
    folder = cache.finish(ADDRESS, "one", FILES)
    assert cache.whole(ADDRESS, "one") == folder
    assert cache.whole(ADDRESS, "two") is None
    assert cache.whole("hf://tiny/other", "one") is None


def test_a_damaged_model_is_not_whole_and_keeps_what_it_has(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    folder = fill(cache)
    (folder / "config.json").write_text("{ cut")
    assert cache.whole(ADDRESS, "one") is None
    partial = cache.begin(ADDRESS, "one")
    assert (partial / "config.json").read_text() == "{ cut"
    assert not folder.exists()


def test_a_pin_is_kept_for_what_was_asked(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    assert cache.pinned(ADDRESS, None) is None
    cache.pin(ADDRESS, None, "one")
    assert cache.pinned(ADDRESS, None) == "one"
    assert cache.pinned(ADDRESS, "main") is None


def test_half_a_fetch_of_an_older_revision_goes_when_a_new_one_is_pinned(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    cache.pin(ADDRESS, None, "one")
    older = cache.begin(ADDRESS, "one")
    cache.pin(ADDRESS, None, "two")
    assert not older.exists()


async def test_one_at_a_time_and_the_next_is_let_in_when_the_first_ends(tmp_path: Path) -> None:
    waited = asyncio.Event()

    async def enter() -> None:
        async with ModelCache(tmp_path).locked(ADDRESS, wait_seconds=20, on_wait=waited.set):
            pass

    async with ModelCache(tmp_path).locked(ADDRESS, wait_seconds=1, on_wait=waited.set):
        assert not waited.is_set()
        second = asyncio.create_task(enter())
        await waited.wait()
    await second


async def test_what_times_out_under_the_lock_is_not_taken_for_the_lock(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="mine"):
        async with ModelCache(tmp_path).locked(ADDRESS, wait_seconds=1, on_wait=lambda: None):
            raise TimeoutError("mine")


def test_the_rate_is_of_the_last_seconds_and_of_what_came_over_the_network() -> None:
    now = 100.0
    progress = Progress(ADDRESS, clock=lambda: now)
    progress.enter(Phase.FETCHING)
    progress.num_bytes_done = 5000
    progress.receive(300)
    now += 2
    progress.receive(100)
    assert progress.num_bytes_done == 5400
    assert progress.bytes_per_second == 200
    now += 9
    assert progress.bytes_per_second == pytest.approx(100 / 9)
    now += 9
    assert progress.bytes_per_second == 0


def test_a_new_attempt_forgets_the_failure_of_the_last() -> None:
    progress = Progress(ADDRESS)
    progress.fail(FetchError(Reason.UNREACHABLE, "away"), retry_seconds=1)
    assert progress.failure is not None
    seen = progress.news.count
    progress.enter(Phase.RESOLVING)
    assert progress.failure is None
    assert progress.news.count > seen
