"""A loader fetches its model from a hub, a web server and a bucket: whole, once, whatever breaks on the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from aiohttp import web
from grpc_health.v1 import health_pb2, health_pb2_grpc
from loader_source import TIMEOUT_SECONDS, Watched, loading
from support.model_places import PLACES, Place, on_a_hub
from support.model_servers import COMMIT, Hub, running

from emoe.loader.fetch import fetching
from emoe.runtime.channels import open_channel
from emoe.store.store import ExpertStore
from emoe.v1 import loader_pb2 as pb

HALF = 7_000_000
STOP_SECONDS = 10.0
"""Well below the time after which a silent source is given up."""
NEEDED = {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors.index.json"}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards, and what publishers leave beside them."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    config = Qwen2MoeConfig(
        vocab_size=64,
        hidden_size=640,
        intermediate_size=64,
        moe_intermediate_size=160,
        shared_expert_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=64,
    )
    folder = tmp_path_factory.mktemp("published")
    Qwen2MoeForCausalLM(config).save_pretrained(folder, max_shard_size="16MB")
    (folder / "tokenizer.json").write_text("{}")
    for name in ("README.md", "pytorch_model.bin", "model.gguf", "consolidated.safetensors"):
        (folder / name).write_bytes(b"not needed" * 100)
    return folder


@pytest.fixture(params=[pytest.param(name, id=name) for name in PLACES])
async def place(
    request: pytest.FixtureRequest, published: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Place]:
    async with PLACES[request.param](published, monkeypatch) as place:
        yield place


def shards(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("model-*.safetensors")}


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


@pytest.mark.parametrize(
    ("source", "settings", "reason", "says"),
    [
        pytest.param("hf://tiny/other", {}, "NotFound", "no such model", id="hub-model"),
        pytest.param("hf://tiny/moe", {"revision": "v9"}, "NotFound", "no revision v9", id="hub-revision"),
        pytest.param("hf://tiny", {}, "InvalidSource", "hf://org/name", id="hub-name"),
        pytest.param("hf://-/..", {}, "InvalidSource", "hf://org/name", id="hub-bad-name"),
        pytest.param("ftp://host/x", {}, "InvalidSource", "a source is one of", id="scheme"),
        pytest.param("/no/such/folder", {}, "NotFound", "no such folder", id="folder"),
        pytest.param("http://user:secret@host/x", {}, "InvalidSource", "no user", id="password"),
    ],
)
async def test_a_source_that_cannot_be_is_said_and_asked_again_seldom(
    published: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    source: str,
    settings: dict[str, str],
    reason: str,
    says: str,
) -> None:
    async with (
        on_a_hub(published, monkeypatch),
        loading(source, tmp_path, permanent_retry_seconds=77.0, **settings) as loader,
    ):
        failure = await loader.failure()

    assert (failure.reason, failure.permanent, failure.retry_seconds) == (reason, True, 77.0)
    assert says in failure.message
    assert "secret" not in failure.message


async def test_a_missing_model_on_a_web_server_or_in_a_bucket_is_not_found(place: Place, tmp_path: Path) -> None:
    async with loading(place.address.replace("tiny", "other"), tmp_path) as loader:
        assert (await loader.failure()).reason == "NotFound"


async def test_a_gated_model_is_had_with_a_token_and_not_without(
    published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    async with on_a_hub(published, monkeypatch, Hub(published, token="let-me-in")) as place:
        async with loading(place.address, tmp_path) as loader:
            failure = await loader.failure()
        assert failure.reason == "Unauthorized"
        assert "HF_TOKEN" in failure.message

        monkeypatch.setenv("HF_TOKEN", "let-me-in")
        async with loading(place.address, tmp_path) as loader:
            await loader.until("READY")


@pytest.mark.parametrize("status", [401, 403])
async def test_a_web_server_that_refuses_is_unauthorized(tmp_path: Path, status: int) -> None:
    async def refuse(_request: web.Request) -> web.Response:
        return web.Response(status=status)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", refuse)
    async with running(app) as port, loading(f"http://127.0.0.1:{port}/x", tmp_path) as loader:
        assert (await loader.failure()).reason == "Unauthorized"


async def test_a_bucket_that_refuses_is_unauthorized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(_request: web.Request) -> web.Response:
        body = "<Error><Code>AccessDenied</Code><Message>not yours</Message></Error>"
        return web.Response(status=403, body=body, content_type="application/xml")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", refuse)
    async with running(app) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        async with loading("s3://models/tiny", tmp_path) as loader:
            failure = await loader.failure()
    assert failure.reason == "Unauthorized"
    assert "AWS_" in failure.message


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


async def test_a_dense_model_is_refused_before_its_weights_are_fetched(
    published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(published, tmp_path / "dense"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    hub = Hub(folder)
    async with on_a_hub(folder, monkeypatch, hub) as place, loading(place.address, tmp_path / "cache") as loader:
        failure = await loader.failure()

    assert (failure.reason, failure.permanent) == ("Unsupported", True)
    assert not any(name.endswith(".safetensors") for name, _ in hub.reads)


async def test_a_model_without_safetensors_is_unsupported(
    published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    for name in ("config.json", "pytorch_model.bin"):
        shutil.copy(published / name, folder)
    async with on_a_hub(folder, monkeypatch) as place, loading(place.address, tmp_path / "cache") as loader:
        failure = await loader.failure()
    assert failure.reason == "Unsupported"
    assert "safetensors only" in failure.message


async def test_a_cache_without_room_is_told_before_the_weights_come(
    published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: usage._replace(free=HALF))
    async with on_a_hub(published, monkeypatch) as place, loading(place.address, tmp_path) as loader:
        failure = await loader.failure()
    assert (failure.reason, failure.permanent) == ("NoSpace", False)


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


async def code_of(call: object) -> grpc.StatusCode:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        return grpc.StatusCode(await call.code())  # type: ignore[attr-defined]


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
