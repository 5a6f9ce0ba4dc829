"""A loader fetches its model from a hub, a web server and a bucket: what is needed, once, and then serves it."""

from __future__ import annotations

import shutil
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from loader_clients import code_of
from loader_models import HALF, NEEDED, shards
from loader_source import TIMEOUT_SECONDS, loading
from support.model_places import Place, on_a_hub
from support.model_servers import COMMIT, Hub

from emoe.runtime.channels import open_channel
from emoe.store.store import ExpertStore
from emoe.v1 import loader_pb2 as pb


async def test_what_a_model_needs_is_fetched_and_nothing_else(place: Place, published: Path, tmp_path: Path) -> None:
    async with loading(place.address, tmp_path) as loader:
        folder = await loader.ready_folder()

    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names == NEEDED | shards(published)
    assert all((folder / name).read_bytes() == (published / name).read_bytes() for name in names)


async def test_progress_leads_to_the_model_geometry(place: Place, published: Path, tmp_path: Path) -> None:
    async with loading(place.address, tmp_path) as loader:
        ready = await loader.until("READY")

    num_bytes = sum((published / name).stat().st_size for name in NEEDED | shards(published))
    assert (ready.num_bytes_done, ready.num_bytes_total) == (num_bytes, num_bytes)
    assert ready.source == place.address
    assert ready.revision == COMMIT or len(ready.revision) == 64
    with ExpertStore.open(published) as store:
        assert ready.geometry.model.digest == store.digest
        assert ready.geometry.grid.expert_bytes == store.grid.expert_bytes
    assert ready.geometry.kv_bytes_per_token == 2 * 2 * 2 * 320 * 4
    assert ready.geometry.max_context == 64


async def test_a_fetched_model_needs_no_network_any_more(
    published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with on_a_hub(published, monkeypatch) as place, loading(place.address, tmp_path) as loader:
        await loader.until("READY")

    async with loading(place.address, tmp_path) as loader:
        assert (await loader.until("READY")).revision == COMMIT
    assert all(message.phase != pb.MODEL_PHASE_FETCHING for message in loader.seen)


async def test_two_loaders_on_one_cache_fetch_once(
    published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub = Hub(published)
    async with (
        on_a_hub(published, monkeypatch, hub) as place,
        loading(place.address, tmp_path) as first,
        loading(place.address, tmp_path) as second,
    ):
        assert await first.ready_folder() == await second.ready_folder()

    names = [name for name, _ in hub.reads]
    assert sorted(names) == sorted(set(names))
    assert len(hub.revisions) == 1


async def test_a_branch_is_resolved_once(published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second start, after half a fetch, asks for the commit that the first one found."""
    hub = Hub(published)
    async with on_a_hub(published, monkeypatch, hub) as place:
        place.line.fall_silent_after(HALF)
        async with loading(place.address, tmp_path, revision="main") as loader:
            await place.line.is_silent.wait()
        async with loading(place.address, tmp_path, revision="main") as loader:
            await loader.until("READY")
        async with loading(place.address, tmp_path, revision=COMMIT) as loader:
            await loader.until("READY")

    assert hub.revisions == ["main", COMMIT]


async def test_a_fetched_file_that_was_cut_later_is_fetched_again_alone(
    published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub = Hub(published)
    async with on_a_hub(published, monkeypatch, hub) as place:
        async with loading(place.address, tmp_path) as loader:
            folder = await loader.ready_folder()
        name = max(shards(folder))
        (folder / name).write_bytes(b"cut")
        hub.reads.clear()
        async with loading(place.address, tmp_path) as loader:
            assert await loader.ready_folder() == folder

    assert [read for read, _ in hub.reads] == [name]
    assert (folder / name).read_bytes() == (published / name).read_bytes()


async def test_until_the_model_is_open_only_its_progress_is_told(
    published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with on_a_hub(published, monkeypatch) as place:
        place.line.fall_silent_after(HALF)
        async with loading(place.address, tmp_path) as loader, open_channel(loader.health_address) as health:
            assert (await loader.until("FETCHING")).source == place.address
            stub = health_pb2_grpc.HealthStub(health)
            answers = [
                (await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT_SECONDS)).status
                for name in ("", "liveness")
            ]
            codes = [
                await code_of(loader.stub.GetModel(pb.GetModelRequest())),
                await code_of(loader.stub.ListFiles(pb.ListFilesRequest())),
                await code_of(loader.stub.ReadFile(pb.ReadFileRequest())),
                await code_of(loader.stub.PullExperts(pb.PullExpertsRequest())),
                await code_of(loader.stub.WatchWorkers(pb.WatchWorkersRequest())),
                await code_of(loader.stub.Subscribe()),
                await code_of(loader.stub.ReportTasks()),
            ]
    assert answers == [health_pb2.HealthCheckResponse.NOT_SERVING, health_pb2.HealthCheckResponse.SERVING]
    assert codes == [grpc.StatusCode.UNAVAILABLE] * 7


async def test_the_model_that_ships_is_its_own_source(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    async with loading("demo://", cache) as loader:
        folder = await loader.ready_folder()
        ready = loader.seen[-1]
    assert folder.name == "emoe-tiny"
    assert ready.revision == ready.geometry.model.digest
    assert not cache.exists()


async def test_a_folder_that_comes_later_is_opened_then(published: Path, tmp_path: Path) -> None:
    folder = tmp_path / "claim"
    async with loading(str(folder), tmp_path / "cache") as loader:
        assert (await loader.failure()).reason == "NotFound"
        shutil.copytree(published, tmp_path / "copy", ignore=shutil.ignore_patterns("consolidated*"))
        (tmp_path / "copy").rename(folder)
        assert await loader.ready_folder() == folder
