"""A real worker in this process, over a small checkpoint, reached through its own gRPC port."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from emoe.runtime.channels import open_channel
from emoe.v1 import worker_pb2_grpc
from emoe.worker.main import serve
from emoe.worker.settings import WorkerSettings

START_SECONDS = 60.0


@contextlib.asynccontextmanager
async def running_worker(folder: Path | None, tmp_path: Path, **settings: Any) -> AsyncIterator[grpc.aio.Channel]:
    """The channel of a worker that is ready. Without a folder it has to ask its loader."""
    announce = tmp_path / "worker.json"
    task = asyncio.create_task(
        serve(
            WorkerSettings(
                model=folder,
                announce_file=announce,
                drain_seconds=0,
                device="cpu",
                **{"max_context": 64, "max_concurrency": 4, **settings},
            )
        )
    )
    try:
        async with asyncio.timeout(START_SECONDS):
            while not announce.exists():
                if task.done():
                    task.result()
                await asyncio.sleep(0.01)
            async with open_channel(json.loads(announce.read_text())["address"]) as channel:
                yield channel
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def stub_of(channel: grpc.aio.Channel) -> Any:
    return worker_pb2_grpc.WorkerServiceStub(channel)
