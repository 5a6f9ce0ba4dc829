"""`emoe up --json` as a process of its own, and what it prints."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

START_SECONDS = 100.0


class Up:
    """A running `emoe up --json` and the events that it printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []

    async def until(self, **fields: object) -> dict[str, Any]:
        """The next event that has these fields."""
        assert self.process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            while line := await self.process.stdout.readline():
                self.events.append(json.loads(line))
                if self.events[-1].items() >= fields.items():
                    return self.events[-1]
        raise AssertionError(f"emoe up ended; its last events: {self.events[-5:]}")

    def pid_of(self, state_dir: Path, service: str) -> int:
        return int(json.loads((state_dir / "announce" / f"{service}.json").read_text())["pid"])


@contextlib.asynccontextmanager
async def running_up(model: Path, state_dir: Path, *options: str) -> AsyncIterator[Up]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "emoe.cli.main", "up", "--json", "--listen=127.0.0.1:0"),
        *(f"--model={model}", f"--state-dir={state_dir}", "--max-context=64", *options),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Up(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
