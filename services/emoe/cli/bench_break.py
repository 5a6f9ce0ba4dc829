"""A benchmark that may be broken off: Ctrl-C, SIGTERM and a closed terminal end it in order, once.

Handlers are set by name: a shell's background job ignores SIGINT, and SIGTERM would end the process where it stands.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine, Iterator
from types import FrameType
from typing import Any, NoReturn

from emoe.cli.signals import END_SIGNALS


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """For work without an event loop: SystemExit(128 + number), so that what is half made is removed."""
    before = {number: signal.signal(number, _end) for number in END_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


async def run_until_broken_off(work: Coroutine[Any, Any, None]) -> int | None:
    """The signal that ended `work` before its time. Those after it change nothing: cleaning up is under way then, and
    short."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    signals: list[int] = []

    def on_signal(number: int) -> None:
        if not signals:
            task.cancel()
        signals.append(number)

    for number in END_SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        await task
    except asyncio.CancelledError:
        if not signals:
            raise
        return signals[0]
    finally:
        for number in END_SIGNALS:
            loop.remove_signal_handler(number)
    return None
