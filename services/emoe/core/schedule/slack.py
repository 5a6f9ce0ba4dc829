"""By how long the running requests of one worker can still be delayed and meet their targets.

An admission delays all of them alike, so the delays are summed once for the worker, and each request keeps its slack
together with the sum when it was put in: an admission costs one addition however many run (eMoE's t_i, section 4.4,
looks at every one), and only when the one with the least moves are the others looked at. A request whose targets are
lost already is not protected: what it gets is what is left.
"""

from __future__ import annotations

import math


class SlackBook:
    __slots__ = ("_keys", "_least", "delay_seconds")

    def __init__(self) -> None:
        self._keys: dict[str, float] = {}
        """Slack plus `delay_seconds` when it was put in."""
        self._least: float | None = math.inf
        """Of the keys; None: not known."""
        self.delay_seconds = 0.0
        """The sum of all delays so far."""

    def __len__(self) -> int:
        """Of those that are protected."""
        return len(self._keys)

    def put(self, request_id: str, slack_seconds: float) -> None:
        """Anew or instead of what it had. One that has lost its targets, or never had any, takes no place."""
        if not 0.0 <= slack_seconds < math.inf:
            self.drop(request_id)
            return
        key = slack_seconds + self.delay_seconds
        old = self._keys.get(request_id)
        self._keys[request_id] = key
        if self._least is not None:
            if key <= self._least:
                self._least = key
            elif old == self._least:
                self._least = None

    def drop(self, request_id: str) -> None:
        if self._keys.pop(request_id, None) == self._least:
            self._least = None

    def delay(self, seconds: float) -> None:
        """All of them, by the same."""
        self.delay_seconds += seconds

    def least_seconds(self) -> float:
        """Infinity where nothing needs protection. Those that became late lose theirs here."""
        least = self._least
        if least is None:
            least = self._least = min(self._keys.values(), default=math.inf)
        if least < self.delay_seconds:
            self._keys = {name: key for name, key in self._keys.items() if key >= self.delay_seconds}
            least = self._least = min(self._keys.values(), default=math.inf)
        return least - self.delay_seconds
