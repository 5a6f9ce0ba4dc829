"""A loader in a process of its own, for as long as a benchmark needs it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from emoe.bench.failures import BenchmarkError

START_SECONDS = 120.0
END_SECONDS = 10.0
POLL_SECONDS = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderEnd:
    pid: int
    address: str


@contextlib.asynccontextmanager
async def running_loader(model: Path, **settings: str) -> AsyncIterator[LoaderEnd]:
    """Listening inside; `settings` are the loader's own. Its log goes to our standard error."""
    announce_file = model / f".loader-{secrets.token_hex(4)}"
    told = {"model": str(model), "announce_file": str(announce_file), "log_level": "warning", "drain_seconds": "0"}
    told |= {"exit_with_parent": "true", "parent_pid": str(os.getpid()), **settings}
    environment = os.environ | {f"EMOE_LOADER_{name.upper()}": value for name, value in told.items()}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "emoe.loader.main", env=environment)
    try:
        yield await _announced(process, announce_file)
    finally:
        await _end(process)


async def _announced(process: asyncio.subprocess.Process, announce_file: Path) -> LoaderEnd:
    try:
        async with asyncio.timeout(START_SECONDS):
            while not await asyncio.to_thread(announce_file.exists):
                if process.returncode is not None:
                    raise BenchmarkError("the loader ended before it listened; see its lines above")
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError as error:
        raise BenchmarkError(f"the loader does not listen within {START_SECONDS:g} s") from error
    told = json.loads(await asyncio.to_thread(announce_file.read_text))
    return LoaderEnd(pid=process.pid, address=told["address"])


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), END_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
