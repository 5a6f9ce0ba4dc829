"""What every streaming call of the loader needs: a bound on how many there are, and time limits on both halves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeVar

import grpc

from emoe.core.errors import NotReadyError, QueueFullError

WRITE_SECONDS = 30.0
_RETRY_AFTER_SECONDS = 1.0

Context = grpc.aio.ServicerContext[Any, Any]
_Message = TypeVar("_Message")


class Places:
    """So many streams of a kind, and no more."""

    def __init__(self, what: str, limit: int) -> None:
        self._what = what
        self._limit = limit
        self._num_taken = 0

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        if self._num_taken >= self._limit:
            raise QueueFullError(
                f"{self._limit} {self._what} are open already; end some or come back",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        self._num_taken += 1
        try:
            yield
        finally:
            self._num_taken -= 1


async def next_message(messages: AsyncIterator[_Message], seconds: float, what: str) -> _Message | None:
    """None when the client has ended its half of the stream."""
    try:
        async with asyncio.timeout(seconds):
            return await anext(messages, None)
    except TimeoutError:
        raise NotReadyError(f"{what} did not come within {seconds:g} s; subscribe again") from None


async def write(context: Context, message: Any) -> None:
    """A reader that stops reading must not hold what others wait for."""
    try:
        async with asyncio.timeout(WRITE_SECONDS):
            await context.write(message)
    except TimeoutError:
        raise NotReadyError(f"the peer has read nothing for {WRITE_SECONDS:g} s; this stream ends") from None
