"""A process's anonymous memory, looked at from outside: no lock of that process can hide a peak."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from emoe.bench.failures import BenchmarkError

SAMPLE_SECONDS = 0.002


def anonymous_bytes(pid: int) -> int:
    """RssAnon: no file pages, no shared memory. 0 once the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    for line in lines:
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    if "RssAnon:" in Path("/proc/self/status").read_text():
        return 0  # one that is ending has no memory any more
    raise BenchmarkError("/proc does not tell this system's anonymous memory; measure it on Linux")


class PeakWatch:
    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak_bytes = 0

    @property
    def peak_bytes(self) -> int:
        """The most so far."""
        self.look()
        return self._peak_bytes

    def look(self) -> None:
        self._peak_bytes = max(self._peak_bytes, anonymous_bytes(self._pid))


@contextlib.asynccontextmanager
async def watched(pid: int) -> AsyncIterator[PeakWatch]:
    """Looks every `SAMPLE_SECONDS`; the event loop should have nothing else to do."""
    watch = PeakWatch(pid)

    async def keep_looking() -> None:
        while True:
            watch.look()
            await asyncio.sleep(SAMPLE_SECONDS)

    looking = asyncio.create_task(keep_looking())
    try:
        yield watch
    finally:
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking
