"""A counter that loops and watchers wait on: something changed, look again.

Any number of waiters, each with the count it saw last, so that a change between looking and waiting is never lost and
many changes are one wake-up. Knows nothing of what changed.
"""

from __future__ import annotations

import asyncio
import contextlib


class News:
    def __init__(self) -> None:
        self.count = 0
        self._next = asyncio.Event()

    def announce(self) -> None:
        self.count += 1
        told, self._next = self._next, asyncio.Event()
        told.set()

    async def after(self, seen: int, *, timeout_seconds: float | None = None) -> None:
        """Until `count` is beyond `seen`, or the time is over. Without a time, for streams that end with their peer."""
        if self.count > seen:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._next.wait()
