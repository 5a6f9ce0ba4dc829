"""Whatever breaks while a model is fetched, a line or the loader itself: it is taken up where it broke, and whole."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from loader_models import HALF, shards
from loader_source import TIMEOUT_SECONDS, Watched, loading
from support.model_places import Place, on_a_hub
from support.model_servers import Hub, running

from emoe.runtime.channels import open_channel
from emoe.v1 import loader_pb2 as pb

STOP_SECONDS = 10.0
"""Well below the time after which a silent source is given up."""


async def test_a_connection_that_breaks_is_taken_up_where_it_broke(
    place: Place, published: Path, tmp_path: Path
) -> None:
    place.line.break_after(HALF)

    async with loading(place.address, tmp_path) as loader:
        folder = await loader.ready_folder()

    assert place.line.num_breaks == 1
    assert all(message.phase != pb.MODEL_PHASE_FAILED for message in loader.seen)
    assert all((folder / name).read_bytes() == (published / name).read_bytes() for name in shards(published))


@contextlib.asynccontextmanager
async def loader_process(
    source: str, cache: Path, tmp_path: Path
) -> AsyncIterator[tuple[Watched, asyncio.subprocess.Process]]:
    announce = tmp_path / "loader.json"
    announce.unlink(missing_ok=True)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "emoe.cli.main", "serve", "loader", f"--source={source}"),
        *(f"--model-cache={cache}", f"--announce-file={announce}", "--drain-seconds=0"),
    )
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not announce.exists():
                assert process.returncode is None
                await asyncio.sleep(0.02)
        async with open_channel(json.loads(announce.read_text())["address"]) as channel:
            yield Watched(channel), process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_a_killed_loader_goes_on_where_it_stopped(
    published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub = Hub(published)
    cache = tmp_path / "cache"
    async with on_a_hub(published, monkeypatch, hub) as place:
        place.line.fall_silent_after(HALF)
        async with loader_process(place.address, cache, tmp_path) as (loader, process):
            await place.line.is_silent.wait()
            while (await loader.next()).num_bytes_done < HALF // 2:
                pass
            process.kill()
            assert await process.wait() == -signal.SIGKILL
        left = sum(path.stat().st_size for path in cache.glob("*.partial/*"))

        async with loader_process(place.address, cache, tmp_path) as (loader, _):
            folder = await loader.ready_folder()
            fetching = [m for m in loader.seen if m.phase == pb.MODEL_PHASE_FETCHING and m.num_bytes_total]

    assert left > HALF // 2
    assert fetching[0].num_bytes_done >= left
    assert any(ranged for _, ranged in hub.reads)
    assert all((folder / name).read_bytes() == (published / name).read_bytes() for name in shards(published))


async def test_a_loader_that_is_told_to_stop_does_not_wait_for_a_silent_source(
    published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with on_a_hub(published, monkeypatch) as place:
        place.line.fall_silent_after(HALF)
        async with loader_process(place.address, tmp_path / "cache", tmp_path) as (_, process):
            await place.line.is_silent.wait()
            process.terminate()
            async with asyncio.timeout(STOP_SECONDS):
                assert await process.wait() == 0


async def test_a_loader_waits_for_another_only_so_long(
    published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with on_a_hub(published, monkeypatch) as place:
        place.line.fall_silent_after(HALF)
        async with loading(place.address, tmp_path) as first:
            await place.line.is_silent.wait()
            async with loading(place.address, tmp_path, fetch_wait_seconds=0.1) as second:
                failure = await second.failure()
            assert first.seen == [] or first.seen[-1].phase == pb.MODEL_PHASE_FETCHING

    assert failure.reason == "Unreachable"
    assert "another loader" in failure.message


async def test_damaged_bytes_are_never_served(published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = min(shards(published))
    data = bytearray((published / name).read_bytes())
    data[-1] ^= 1
    hub = Hub(published)
    hub.served[name] = bytes(data)
    async with on_a_hub(published, monkeypatch, hub) as place, loading(place.address, tmp_path) as loader:
        failure = await loader.failure()
        assert (failure.reason, failure.permanent) == ("Corrupt", True)
        assert name in failure.message

        hub.served.clear()
        await loader.until("READY")


async def test_a_source_that_is_away_is_tried_until_it_is_there(
    published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub = Hub(published)
    async with running(hub.app()) as port:
        pass
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    async with loading("hf://tiny/moe", tmp_path) as loader:
        failure = await loader.failure()
        assert (failure.reason, failure.permanent) == ("Unreachable", False)

        async with running(hub.app(), port=port):
            await loader.until("READY")
