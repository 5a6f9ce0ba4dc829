"""What waits, in the order of a key that a policy gives: adding, leaving and taking cost a step of a heap each.

A request too long for every worker that is free now must not hold up the next, nor be looked at again at each pick: so
there is a lane for each length that workers can take (they have few), and only lanes that fit now are looked at.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Callable, Iterator

from emoe.core.schedule.request import QueuedRequest

Entry = tuple[float, float, int, QueuedRequest]
"""Key, time of arrival, number; the last makes the order total."""

ANSWER_TOKEN_WEIGHT = 10.0
"""What a token of an answer takes of a worker, in tokens of prompts (`FIRST_GUESS`'s ratio)."""
MAX_STEPS = 3
"""Entries looked at for each that is wanted: those that left are among them."""
SPARE_ENTRIES = 64
"""So many entries of requests that left may stay, beyond as many as there are that wait."""


class Waiting:
    """Who left stays in its lane until it comes up or outdated entries are the most."""

    def __init__(self, key: Callable[[QueuedRequest], float]) -> None:
        self._key = key
        self._entries: dict[str, Entry] = {}
        self._limits: tuple[int, ...] = ()
        self._lanes: list[list[Entry]] = [[]]
        """One for each limit, of what fits there and not below; the last of what fits nowhere."""
        self._num_added = self._num_outdated = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._entries

    @property
    def num_entries(self) -> int:
        """With those of requests that left."""
        return sum(map(len, self._lanes))

    def add(self, request: QueuedRequest) -> None:
        """Anew, or in place of one with its id."""
        self.discard(request.request_id)
        self._num_added += 1
        entry = (self._key(request), request.arrived_seconds, self._num_added, request)
        self._entries[request.request_id] = entry
        heapq.heappush(self._lane(request), entry)

    def discard(self, request_id: str) -> QueuedRequest | None:
        """It waits no longer; None where it did not."""
        entry = self._entries.pop(request_id, None)
        if entry is None:
            return None
        self._num_outdated += 1
        if self._num_outdated > len(self._entries) + SPARE_ENTRIES:
            self._sort_into_lanes()
        return entry[-1]

    @property
    def least_key(self) -> float:
        """Of all that wait, whether or not it fits anywhere; infinity where nothing does."""
        heads = [head[0] for lane in self._lanes if (head := self._head(lane)) is not None]
        return min(heads, default=math.inf)

    def first(self, limits: tuple[int, ...], most_tokens: int) -> QueuedRequest | None:
        """The first of those that take no more than `most_tokens`, one of the `limits` of the workers, or 0."""
        heads = self._heads(limits, most_tokens)
        return heads[0][0][-1] if heads else None

    def first_ones(self, limits: tuple[int, ...], most_tokens: int, num: int) -> Iterator[Entry]:
        """So many of the same at most, in order; they stay where they are. Nothing may change meanwhile."""
        ahead = self._heads(limits, most_tokens)
        for _ in range(MAX_STEPS * num):
            if not ahead or num == 0:
                return
            entry, number, place = ahead[0]
            if self._entries.get(entry[-1].request_id) is entry:
                yield entry
                num -= 1
            lane = self._lanes[number]
            heapq.heappop(ahead)
            for below in range(2 * place + 1, min(2 * place + 3, len(lane))):
                heapq.heappush(ahead, (lane[below], number, below))

    def take_until(self, key: float) -> list[QueuedRequest]:
        """Those with smaller keys, whether or not they fit anywhere; they wait no longer."""
        taken: list[QueuedRequest] = []
        for number in range(len(self._lanes)):
            while (head := self._head(self._lanes[number])) is not None and head[0] < key:
                self.discard(head[-1].request_id)
                taken.append(head[-1])
        return taken

    def _heads(self, limits: tuple[int, ...], most_tokens: int) -> list[tuple[Entry, int, int]]:
        """(entry, lane, 0): a heap once they are in order; one lane is the common case."""
        if limits != self._limits:
            self._limits = limits
            self._sort_into_lanes()
        heads = []
        for number, lane in enumerate(self._lanes[: bisect.bisect_right(limits, most_tokens)]):
            head = self._head(lane)
            if head is not None:
                heads.append((head, number, 0))
        if len(heads) > 1:
            heads.sort()
        return heads

    def _head(self, lane: list[Entry]) -> Entry | None:
        while lane:
            head = lane[0]
            if self._entries.get(head[-1].request_id) is head:
                return head
            heapq.heappop(lane)
            self._num_outdated -= 1
        return None

    def _lane(self, request: QueuedRequest) -> list[Entry]:
        return self._lanes[bisect.bisect_left(self._limits, request.num_kv_tokens)]

    def _sort_into_lanes(self) -> None:
        self._lanes = [[] for _ in range(len(self._limits) + 1)]
        for entry in self._entries.values():
            self._lane(entry[-1]).append(entry)
        for lane in self._lanes:
            heapq.heapify(lane)
        self._num_outdated = 0


def by_arrival(request: QueuedRequest) -> float:
    return request.arrived_seconds


def by_due_time(request: QueuedRequest) -> float:
    """Those without targets come last."""
    return request.first_token_due_seconds


def by_work(request: QueuedRequest) -> float:
    """In tokens of prompts."""
    return request.num_prompt_tokens + ANSWER_TOKEN_WEIGHT * request.num_expected_tokens
