"""One checkpoint in each kind of place that a loader fetches from, behind a line that can be made to break."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from support.model_servers import Hub, Line, file_server, running

BUCKET = "models"
PART_BYTES = 5 * 1024 * 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    address: str
    line: Line


@contextlib.asynccontextmanager
async def on_a_hub(folder: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub | None = None) -> AsyncIterator[Place]:
    hub = hub or Hub(folder)
    async with running(hub.app()) as port, Line(port).open() as line:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{line.port}")
        yield Place(address=f"hf://{hub.repo}", line=line)


@contextlib.asynccontextmanager
async def on_a_web_server(folder: Path, _monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    async with running(file_server(folder)) as port, Line(port).open() as line:
        yield Place(address=f"http://127.0.0.1:{line.port}/models/tiny/", line=line)


@contextlib.asynccontextmanager
async def in_a_bucket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    """Large files in parts, as every client uploads them."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        port = server.get_host_and_port()[1]
        async with Line(port).open() as line:
            for name, value in {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{line.port}",
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_DEFAULT_REGION": "us-east-1",
            }.items():
                monkeypatch.setenv(name, value)
            await asyncio.to_thread(_upload, folder, f"http://127.0.0.1:{port}")
            yield Place(address=f"s3://{BUCKET}/tiny/moe", line=line)
    finally:
        server.stop()


def _upload(folder: Path, endpoint: str) -> None:
    import boto3
    from boto3.s3.transfer import TransferConfig

    client = boto3.client("s3", endpoint_url=endpoint)
    parts = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES)
    client.create_bucket(Bucket=BUCKET)
    for path in folder.iterdir():
        client.upload_file(str(path), BUCKET, f"tiny/moe/{path.name}", Config=parts)
    client.close()


PLACES: dict[str, Callable[[Path, pytest.MonkeyPatch], contextlib.AbstractAsyncContextManager[Place]]] = {
    "hub": on_a_hub,
    "web": on_a_web_server,
    "bucket": in_a_bucket,
}
