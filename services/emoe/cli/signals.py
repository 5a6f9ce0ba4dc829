"""Ctrl-C and its kin as cancellation: the first asks for an orderly end, the second cuts that short."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any

END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def run_until_signalled(work: Coroutine[Any, Any, None]) -> None:
    """Runs `work`; each signal cancels it once more. Returns as normal when a signal ended it."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    num_signals = 0

    def on_signal() -> None:
        nonlocal num_signals
        num_signals += 1
        task.cancel()

    for number in END_SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        await task
    except asyncio.CancelledError:
        if not num_signals:
            raise
    finally:
        for number in END_SIGNALS:
            loop.remove_signal_handler(number)
