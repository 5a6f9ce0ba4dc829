"""A model that cannot be had, or not be served: the reason is said, and nothing is fetched in vain."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from aiohttp import web
from loader_models import HALF
from loader_source import loading
from support.model_places import Place, on_a_hub
from support.model_servers import Hub, running

from emoe.loader.fetch import fetching


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


def refusing(status: int, body: str = "") -> web.Application:
    """A server that answers everything so."""

    async def refuse(_request: web.Request) -> web.Response:
        return web.Response(status=status, body=body, content_type="application/xml")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", refuse)
    return app


@pytest.mark.parametrize("status", [401, 403])
async def test_a_web_server_that_refuses_is_unauthorized(tmp_path: Path, status: int) -> None:
    async with running(refusing(status)) as port, loading(f"http://127.0.0.1:{port}/x", tmp_path) as loader:
        assert (await loader.failure()).reason == "Unauthorized"


async def test_a_bucket_that_refuses_is_unauthorized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(refusing(403, "<Error><Code>AccessDenied</Code><Message>not yours</Message></Error>")) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        async with loading("s3://models/tiny", tmp_path) as loader:
            failure = await loader.failure()
    assert failure.reason == "Unauthorized"
    assert "AWS_" in failure.message


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
