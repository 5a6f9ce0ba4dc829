"""A service's life as a process: how it starts, fails and ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from emoe.runtime.channels import open_channel

PROCESS = Path(__file__).with_name("runtime_process.py")
PATIENCE_SECONDS = 20.0

Start = Callable[..., Coroutine[Any, Any, asyncio.subprocess.Process]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts `runtime_process.py`, listening on sockets in `tmp_path`; what still runs at the end is killed."""
    processes: list[asyncio.subprocess.Process] = []

    async def start_process(behaviour: str, **settings: object) -> asyncio.subprocess.Process:
        merged = {"listen": f"unix:{tmp_path}/main", "health_listen": f"unix:{tmp_path}/health", **settings}
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(PROCESS), json.dumps(merged), behaviour, stderr=asyncio.subprocess.PIPE
        )
        processes.append(process)
        return process

    yield start_process
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def wait_for_health(folder: Path, wanted: int) -> None:
    async with open_channel(f"unix:{folder}/health") as channel, asyncio.timeout(PATIENCE_SECONDS):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True)
        async for reply in watch:
            if reply.status == wanted:
                return


SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_failing_background_task_ends_the_process_with_its_reason(start) -> None:
    process = await start("failing background")

    _, log = await process.communicate()

    assert process.returncode == 1
    assert "background task 'broken' of bytes failed" in log.decode()
    assert "the background is broken" in log.decode()


async def test_health_answers_while_the_service_starts_and_sigterm_ends_the_start(start, tmp_path) -> None:
    process = await start("slow start")
    await wait_for_health(tmp_path, NOT_SERVING)

    process.terminate()

    assert await process.wait() == 0


async def test_idle_service_ends_at_once(start, tmp_path) -> None:
    process = await start("serve", drain_seconds=600)
    await wait_for_health(tmp_path, SERVING)
    async with open_channel(f"unix:{tmp_path}/main") as channel:
        assert await channel.unary_unary("/emoe.test.Bytes/Echo")(b"hello", timeout=10) == b"hello"

        process.terminate()

        assert await process.wait() == 0


async def test_address_in_use_is_named(start, tmp_path) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    process = await start("serve", listen=f"127.0.0.1:{port}")
    _, log = await process.communicate()

    await server.stop(None)
    assert process.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in log.decode()


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
async def test_service_dies_with_its_killed_parent(start, tmp_path) -> None:
    announced = tmp_path / "announced.json"
    parent = await start("parent", exit_with_parent=True, announce_file=str(announced))
    await wait_for_health(tmp_path, SERVING)
    child = os.pidfd_open(json.loads(announced.read_text())["pid"])

    parent.kill()

    try:
        ended, _, _ = await asyncio.to_thread(select.select, [child], [], [], PATIENCE_SECONDS)
    finally:
        os.close(child)
    assert ended


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
async def test_service_whose_parent_is_gone_does_not_start(start) -> None:
    process = await start("serve", exit_with_parent=True, parent_pid=1)

    _, log = await process.communicate()

    assert process.returncode == 1
    assert "parent process is gone" in log.decode()
