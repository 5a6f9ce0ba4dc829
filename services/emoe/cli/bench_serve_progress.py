"""What a replay says while it runs: on a terminal one line that renews itself, else a line now and then."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable

from rich.console import Console
from rich.live import Live

from emoe.bench.serve import LoadProgress
from emoe.cli.display import format_ratio

TERMINAL_SECONDS = 0.25
PLAIN_SECONDS = 5.0


@contextlib.asynccontextmanager
async def following(progress: Callable[[], LoadProgress]) -> AsyncIterator[None]:
    """On stderr, for as long as the block runs; the last state stays."""
    console = Console(stderr=True, highlight=False)
    show = _renewing(console, progress) if console.is_terminal else _plain(progress)
    task = asyncio.create_task(show)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _renewing(console: Console, progress: Callable[[], LoadProgress]) -> None:
    with Live(console=console, auto_refresh=False) as live:
        try:
            while True:
                live.update(describe_progress(progress()), refresh=True)
                await asyncio.sleep(TERMINAL_SECONDS)
        finally:
            live.update(describe_progress(progress()), refresh=True)


async def _plain(progress: Callable[[], LoadProgress]) -> None:
    try:
        while True:
            await asyncio.sleep(PLAIN_SECONDS)
            print(describe_progress(progress()), file=sys.stderr, flush=True)
    finally:
        print(describe_progress(progress()), file=sys.stderr, flush=True)


def describe_progress(now: LoadProgress) -> str:
    parts = [
        f"{now.elapsed_seconds:.0f} s",
        f"{now.num_sent} of {now.num_requests} sent",
        f"{now.num_running} running",
        f"{now.num_done} done",
    ]
    if now.num_refused:
        parts.append(f"{now.num_refused} refused")
    if now.num_failed:
        parts.append(f"{now.num_failed} failed")
    parts.append(f"{format_ratio(now.attainment)} in time")
    if now.late_seconds > 0.1:
        parts.append(f"sent {now.late_seconds:.1f} s late: this client is too slow for that load")
    return ", ".join(parts)
