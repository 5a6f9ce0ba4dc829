"""How far a long step is: a line now and then, with what is left of it. The clock is passed in."""

from __future__ import annotations

import time
from collections.abc import Callable

Say = Callable[[str], None]

SAY_EVERY_SECONDS = 2.0


class Progress:
    """Of `total` things, `num_kept` of which an earlier run did."""

    def __init__(
        self, what: str, total: int, *, num_kept: int = 0, say: Say, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what = what
        self._total = total
        self._num_kept = num_kept
        self.num_done = num_kept
        self._say = say
        self._clock = clock
        self._began = self._said = clock()
        if num_kept:
            say(f"{what}: {num_kept} of {total} are kept from before")

    def advance(self, num: int) -> None:
        self.num_done += num
        now = self._clock()
        if self.num_done >= self._total or now - self._said >= SAY_EVERY_SECONDS:
            self._said = now
            self._say(f"{self._what}: {self.num_done} of {self._total}{self._left(now)}")

    def _left(self, now: float) -> str:
        num_new, elapsed = self.num_done - self._num_kept, now - self._began
        if self.num_done >= self._total or not num_new or elapsed <= 0:
            return ""
        return f", {format_seconds(elapsed / num_new * (self._total - self.num_done))} left"


def format_seconds(seconds: float) -> str:
    """`42 s`, `3 min 10 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
