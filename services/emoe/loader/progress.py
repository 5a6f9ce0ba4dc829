"""Where the model stands: set by what fetches and opens it, read by every WatchModel stream.

Event loop only. Knows neither sources nor gRPC.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import time
from collections.abc import Callable

from emoe.loader.fetch.failures import FetchError
from emoe.loader.news import News

RATE_SECONDS = 10.0
"""How far back the rate looks."""


class Phase(enum.Enum):
    RESOLVING = enum.auto()
    FETCHING = enum.auto()
    VERIFYING = enum.auto()
    READY = enum.auto()
    FAILED = enum.auto()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failed:
    error: FetchError
    retry_seconds: float


class Progress:
    """`news` tells of every change but bytes, which are many: whoever shows them looks now and then."""

    def __init__(self, source: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.news = News()
        self.source = source
        self.revision = ""
        self.phase = Phase.RESOLVING
        self.num_bytes_done = 0
        self.num_bytes_total = 0
        self.failure: Failed | None = None
        self._clock = clock
        self._arrived: collections.deque[tuple[float, int]] = collections.deque()

    @property
    def is_moving(self) -> bool:
        """Whether bytes may come without news of them."""
        return self.phase in (Phase.FETCHING, Phase.VERIFYING)

    @property
    def bytes_per_second(self) -> float:
        self._forget_old()
        if self.phase is not Phase.FETCHING or not self._arrived:
            return 0.0
        seconds = max(self._clock() - self._arrived[0][0], 1.0)
        return sum(num_bytes for _, num_bytes in self._arrived) / seconds

    def enter(self, phase: Phase) -> None:
        if phase is Phase.RESOLVING:
            self.num_bytes_done = self.num_bytes_total = 0
            self._arrived.clear()
        self.phase, self.failure = phase, None
        self.news.announce()

    def fail(self, error: FetchError, *, retry_seconds: float) -> None:
        self.phase, self.failure = Phase.FAILED, Failed(error=error, retry_seconds=retry_seconds)
        self.news.announce()

    def resolve(self, revision: str) -> None:
        self.revision = revision
        self.news.announce()

    def receive(self, num_bytes: int) -> None:
        """Over the network just now."""
        self.num_bytes_done += num_bytes
        self._arrived.append((self._clock(), num_bytes))
        self._forget_old()

    def lose(self, num_bytes: int) -> None:
        """They will have to come again."""
        self.num_bytes_done -= num_bytes

    def _forget_old(self) -> None:
        while self._arrived and self._clock() - self._arrived[0][0] > RATE_SECONDS:
            self._arrived.popleft()
