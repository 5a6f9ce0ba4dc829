"""Which resource is looked at next: a queue of keys with due times.

A key is in it once, however often it was added, and is never handled twice at the same time. What the handler says
decides what follows: nothing, a later look, or another try after a pause that doubles up to a bound. Knows neither what
a key stands for nor the API server. Bounded by the number of keys that exist.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
from collections.abc import Awaitable, Callable
from typing import NoReturn

from emoe_operator.cache import Key

log = logging.getLogger(__name__)

NUM_WORKERS = 4
DEBOUNCE_SECONDS = 0.1
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 300.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done:
    """`retry`: it failed and is to be tried again. `again_seconds`: look again then, whether it failed or not."""

    retry: bool = False
    again_seconds: float | None = None


def pause_seconds(num_failures: int, *, random_ratio: float) -> float:
    """1 s, 2 s, 4 s ... 5 min, shortened by up to a fifth, so that what failed together is not tried together."""
    doubled = FIRST_PAUSE_SECONDS * 2.0 ** min(num_failures - 1, 20)
    return min(doubled, LONGEST_PAUSE_SECONDS) * (1.0 - 0.2 * random_ratio)


class WorkQueue:
    def __init__(
        self,
        handle: Callable[[Key], Awaitable[Done]],
        *,
        num_workers: int = NUM_WORKERS,
        debounce_seconds: float = DEBOUNCE_SECONDS,
        on_depth: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._handle = handle
        self._num_workers = num_workers
        self._debounce_seconds = debounce_seconds
        self._on_depth = on_depth
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._due: asyncio.Queue[Key] = asyncio.Queue()
        self._queued: set[Key] = set()
        self._running: set[Key] = set()
        self._dirty: set[Key] = set()
        self._failures: dict[Key, int] = {}

    def add(self, key: Key, *, after_seconds: float | None = None) -> None:
        """Look at it soon, or after so long at the latest; an earlier look that is due anyway is enough."""
        if key in self._queued:
            return
        if key in self._running and after_seconds is None:
            self._dirty.add(key)
            return
        loop = asyncio.get_running_loop()
        when = loop.time() + (self._debounce_seconds if after_seconds is None else after_seconds)
        standing = self._timers.get(key)
        if standing is not None:
            if standing.when() <= when:
                return
            standing.cancel()
        self._timers[key] = loop.call_at(when, self._fall_due, key)

    async def run(self) -> NoReturn:
        async with asyncio.TaskGroup() as group:
            for number in range(self._num_workers):
                group.create_task(self._work(), name=f"reconcile {number}")
        raise AssertionError("the workers never end")

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _fall_due(self, key: Key) -> None:
        del self._timers[key]
        if key in self._running:
            self._dirty.add(key)
            return
        self._queued.add(key)
        self._due.put_nowait(key)
        self._on_depth(len(self._queued))

    async def _work(self) -> None:
        while True:
            key = await self._due.get()
            self._queued.discard(key)
            self._running.add(key)
            self._on_depth(len(self._queued))
            try:
                done = await self._try(key)
            finally:
                self._running.discard(key)
            self._follow_up(key, done)

    async def _try(self, key: Key) -> Done:
        try:
            return await self._handle(key)
        except Exception:  # the supervisor: whatever one resource meets, the others are looked after
            log.exception("looking after %s/%s failed; it is tried again", *key)
            return Done(retry=True)

    def _follow_up(self, key: Key, done: Done) -> None:
        if done.retry:
            self._failures[key] = self._failures.get(key, 0) + 1
            self.add(key, after_seconds=pause_seconds(self._failures[key], random_ratio=random.random()))
        else:
            self._failures.pop(key, None)
        if done.again_seconds is not None:
            self.add(key, after_seconds=done.again_seconds)
        if key in self._dirty:
            self._dirty.discard(key)
            self.add(key)
