"""How many tokens a second the cluster gets through while requests wait for it: what retry delays are computed from.

Only such times count: with an empty queue the rate says how much was asked, not how much can be done.
"""

from __future__ import annotations

import math

_MEMORY_SECONDS = 30.0


class TokenRate:
    """Prompts' and answers' tokens together, older ones for less."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self.last_seconds: float | None = None

    def look(self, now_seconds: float, *, is_busy: bool) -> None:
        """Called before anything changes: `is_busy` says whether requests have waited since the last look."""
        if is_busy and self.last_seconds is not None and now_seconds > self.last_seconds:
            passed = now_seconds - self.last_seconds
            kept = math.exp(-passed / _MEMORY_SECONDS)
            self._tokens *= kept
            self._seconds = self._seconds * kept + passed
        self.last_seconds = now_seconds

    def add(self, num_tokens: int, *, is_busy: bool) -> None:
        if is_busy:
            self._tokens += num_tokens

    @property
    def tokens_per_second(self) -> float | None:
        """None before anything was measured."""
        return self._tokens / self._seconds if self._tokens > 0 and self._seconds > 0 else None
