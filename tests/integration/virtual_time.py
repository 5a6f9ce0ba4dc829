"""An event loop whose time passes only when nothing is left to do: hours of waiting in a moment, and no race with the
machine's load."""

from __future__ import annotations

import asyncio
import selectors


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Opens no sockets and starts no threads: what waits for something outside would wait for ever."""

    def __init__(self) -> None:
        self.now_seconds = 0.0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now_seconds


class _Selector(selectors.SelectSelector):
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("every task waits for another: nothing will ever happen again")
        if not ready:
            # A hair more than asked for, so that rounding never leaves a timer just short of its time.
            self._loop.now_seconds += (timeout or 0.0) + 1e-9
        return ready
