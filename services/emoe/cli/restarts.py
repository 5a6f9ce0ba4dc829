"""How often a dead child may come back, and after what pause. Pure: the clock is the caller's."""

from __future__ import annotations

import collections
import dataclasses

FIRST_DELAY_SECONDS = 0.2
LONGEST_DELAY_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RestartLimit:
    """At most `max_restarts` within any `window_seconds`."""

    max_restarts: int = 5
    window_seconds: float = 60.0


class RestartBudget:
    """One child's restarts. The pause doubles with each restart that is still within the window."""

    def __init__(self, limit: RestartLimit) -> None:
        self._limit = limit
        self._granted: collections.deque[float] = collections.deque(maxlen=limit.max_restarts)

    def next_delay_seconds(self, now_seconds: float) -> float | None:
        """The pause before the restart that this call grants; None when the budget is spent."""
        while self._granted and now_seconds - self._granted[0] >= self._limit.window_seconds:
            self._granted.popleft()
        if len(self._granted) >= self._limit.max_restarts:
            return None
        delay = min(FIRST_DELAY_SECONDS * 2 ** len(self._granted), LONGEST_DELAY_SECONDS)
        self._granted.append(now_seconds)
        return float(delay)
