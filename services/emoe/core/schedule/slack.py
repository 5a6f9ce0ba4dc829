"""By how long the running requests of one worker can still be delayed and meet their targets.

An admission delays all of them alike, so the delays are summed once for the worker, and each request keeps its slack
together with the sum when it was put in: an admission costs a step of a heap however many run (eMoE's t_i, section 4.4,
looks at every one). A request whose targets are lost already is not protected: what it gets is what is left.
"""

from __future__ import annotations

import heapq
import math

SPARE_ENTRIES = 16
"""So many outdated entries a heap may hold beyond as many as there are requests."""


class SlackHeap:
    __slots__ = ("_entries", "_keys", "delay_seconds")

    def __init__(self) -> None:
        self._entries: list[tuple[float, str]] = []
        self._keys: dict[str, float] = {}
        """Slack plus `delay_seconds` when it was put in; an entry with another key is outdated."""
        self.delay_seconds = 0.0
        """The sum of all delays so far."""

    def __len__(self) -> int:
        """Of those that are protected."""
        return len(self._keys)

    def put(self, request_id: str, slack_seconds: float) -> None:
        """Anew or instead of what it had. One without targets has infinite slack and takes no place."""
        if not 0.0 <= slack_seconds < math.inf:
            self.drop(request_id)
            return
        key = slack_seconds + self.delay_seconds
        if self._keys.get(request_id) == key:
            return
        self._keys[request_id] = key
        heapq.heappush(self._entries, (key, request_id))
        if len(self._entries) > 2 * len(self._keys) + SPARE_ENTRIES:
            self._entries = [(key, request_id) for request_id, key in self._keys.items()]
            heapq.heapify(self._entries)

    def drop(self, request_id: str) -> None:
        self._keys.pop(request_id, None)

    def delay(self, seconds: float) -> None:
        """All of them, by the same."""
        self.delay_seconds += seconds

    def least_seconds(self) -> float:
        """Infinity where nothing needs protection. Those that became late lose theirs here."""
        entries, keys = self._entries, self._keys
        while entries:
            key, request_id = entries[0]
            if keys.get(request_id) == key:
                if key >= self.delay_seconds:
                    return key - self.delay_seconds
                del keys[request_id]
            heapq.heappop(entries)
        return math.inf
