"""Standing client streams: kept open for as long as the service lives, however often the peer goes and comes back."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import NoReturn

import grpc

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0


async def keep_connected(name: str, stream: Callable[[], Awaitable[None]]) -> NoReturn:
    """Run `stream` again whenever it ends or fails with a gRPC error, after a pause that doubles up to a bound.

    A stream that lived longer than the bound was a working one: the pause starts anew, and its loss is a warning."""
    loop = asyncio.get_running_loop()
    pause_seconds = FIRST_PAUSE_SECONDS
    lost = False
    while True:
        began_seconds = loop.time()
        try:
            await stream()
            reason = "it ended"
        except grpc.aio.AioRpcError as error:
            reason = f"{error.code().name}: {error.details()}"
        if loop.time() - began_seconds > LONGEST_PAUSE_SECONDS:
            pause_seconds, lost = FIRST_PAUSE_SECONDS, False
        log.log(logging.DEBUG if lost else logging.WARNING, "%s is not connected (%s); trying again", name, reason)
        lost = True
        await asyncio.sleep(pause_seconds * random.uniform(0.8, 1.2))
        pause_seconds = min(pause_seconds * 2, LONGEST_PAUSE_SECONDS)
