"""How long ago each watch was last heard: its opening, an object or a bookmark. Kopf's thread writes, any reads.

`heard_by` makes the response class for the watches' HTTP session: kopf drops bookmarks before any handler sees them.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp

SILENCE_SECONDS = 180.0
"""kopf opens a watch anew after 70 s of silence: longer than two of these is a watch that nobody tends any more."""


class WatchActivity:
    """`expected` are the paths that must be watched."""

    def __init__(self, expected: tuple[str, ...], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard = dict.fromkeys(expected, clock())

    def hear(self, path: str) -> None:
        if path in self._heard:
            self._heard[path] = self._clock()

    def silent(self, seconds: float = SILENCE_SECONDS) -> list[str]:
        """The watches that were not heard for so long, or never since they had to be there."""
        now = self._clock()
        return [path for path, when in self._heard.items() if now - when > seconds]


class _HeardContent:
    """A response's content that says when something of it was read."""

    def __init__(self, content: aiohttp.StreamReader, hear: Callable[[], None]) -> None:
        self._content = content
        self._hear = hear

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        async for chunk in self._content.iter_chunked(size):
            self._hear()
            yield chunk


def heard_by(activity: WatchActivity, on_response: Callable[[str, str, int], None]) -> type[aiohttp.ClientResponse]:
    """`on_response` gets method, path and status of every request."""

    class HeardResponse(aiohttp.ClientResponse):
        async def start(self, connection: Any) -> aiohttp.ClientResponse:
            response = await super().start(connection)
            on_response(self.method, self.url.path, self.status)
            if self.status == 200 and self.url.query.get("watch") == "true":
                path = self.url.path
                activity.hear(path)
                self.content = _HeardContent(self.content, lambda: activity.hear(path))  # type: ignore[assignment]
            return response

    return HeardResponse
