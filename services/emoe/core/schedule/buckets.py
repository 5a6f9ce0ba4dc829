"""Waiting work by the time it is due, in a ring of narrow buckets: is there more before some moment than can be done?

The exact rule for the most requests in time on one machine is Moore's and Hodgson's (Moore, Management Science 1968):
keep the order of due times, and where something would be late, take out the longest so far. Here the sums are of
buckets, so that the question is a few vector steps however much waits, and the longest is the top of a bucket's heap.
"""

from __future__ import annotations

import dataclasses
import heapq
import math

import numpy as np

from emoe.core.schedule.request import QueuedRequest
from emoe.core.schedule.table import FloatArray

NUM_BUCKETS = 512
SPARE_ENTRIES = 64
WIDTH_SECONDS = 0.05
"""25 seconds in all; what is due later waits outside until its time comes near."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """Of all workers together, in tokens of prompts."""

    tokens_per_second: float
    busy_tokens: float = 0.0
    """Of prompts that have started."""
    answering_tokens: float = 0.0
    """What the answers that run will still take."""
    answering_seconds: float = 1.0
    """How long one of them runs on, on the mean."""


class DueBuckets:
    """Work is in tokens of prompts. Whoever leaves stays in its heap until it comes up."""

    def __init__(self) -> None:
        self._tokens: FloatArray = np.zeros(NUM_BUCKETS)
        self._largest: FloatArray = np.zeros(NUM_BUCKETS)
        self._heaps: list[list[tuple[float, str]]] = [[] for _ in range(NUM_BUCKETS)]
        """(minus tokens, id): the largest is on top."""
        self._places: dict[str, tuple[int, float]] = {}
        """(bucket of all time, tokens) of what is in the ring."""
        self._later: list[tuple[int, str, float]] = []
        """A heap of (bucket of all time, id, tokens)."""
        self._outside: dict[str, int] = {}
        self._first = 0
        """The bucket of all time with which the ring begins; what was overdue when it came lies there, too."""
        self._edges = np.arange(1, NUM_BUCKETS + 1) * WIDTH_SECONDS

    def __len__(self) -> int:
        return len(self._places) + len(self._outside)

    def add(self, request_id: str, due_seconds: float, num_tokens: float) -> None:
        bucket = math.floor(due_seconds / WIDTH_SECONDS)
        if bucket >= self._first + NUM_BUCKETS:
            self._outside[request_id] = bucket
            heapq.heappush(self._later, (bucket, request_id, num_tokens))
            if len(self._later) > 2 * len(self._outside) + SPARE_ENTRIES:
                self._later = [entry for entry in self._later if self._outside.get(entry[1]) == entry[0]]
                heapq.heapify(self._later)
        else:
            self._put(max(bucket, self._first), request_id, num_tokens)

    def discard(self, request_id: str) -> None:
        if self._outside.pop(request_id, None) is not None:
            return
        place = self._places.pop(request_id, None)
        if place is None:
            return
        bucket, num_tokens = place
        index = bucket % NUM_BUCKETS
        self._tokens[index] -= num_tokens
        self._clean(index)

    def take_overdue(self, now_seconds: float) -> list[str]:
        """What is due before this moment's bucket leaves the ring, whose beginning moves there."""
        overdue: list[str] = []
        first = math.floor(now_seconds / WIDTH_SECONDS)
        for bucket in range(self._first, min(first, self._first + NUM_BUCKETS)):
            index = bucket % NUM_BUCKETS
            overdue += dict.fromkeys(entry[1] for entry in self._heaps[index] if self._is_here(entry, index))
            self._heaps[index] = []
            self._tokens[index] = self._largest[index] = 0.0
        for request_id in overdue:
            del self._places[request_id]
        self._first = max(first, self._first)
        self._let_in()
        return overdue

    def take_excess(self, now_seconds: float, capacity: Capacity, *, most: int) -> list[str]:
        """The largest until the first time by which more is due than can be done, as long as there is one; they leave.

        An answer that runs keeps one sequence of its worker busy, and leaves the others free: of what all of them take
        only that part is due before time t which is 1 - exp(-t / answering_seconds), as if their ends were drawn from
        an exponential distribution. No more than `most` leave."""
        begin = self._first % NUM_BUCKETS
        tokens = self._in_order(self._tokens)
        seconds = self._edges + (self._first * WIDTH_SECONDS - now_seconds)
        spare = seconds * capacity.tokens_per_second
        spare -= np.cumsum(tokens) + capacity.busy_tokens
        spare += capacity.answering_tokens * np.expm1(-np.maximum(seconds, 0.0) / capacity.answering_seconds)
        spare[tokens == 0.0] = math.inf
        largest = self._in_order(self._largest)
        taken: list[str] = []
        for _ in range(most):
            last = int((spare < 0.0).argmax())
            if not spare[last] < 0.0:
                break
            place = int(largest[: last + 1].argmax())
            index = (place + begin) % NUM_BUCKETS
            spare[place:] += largest[place]
            taken.append(self._heaps[index][0][1])
            self.discard(taken[-1])
            largest[place] = self._largest[index]
            if not self._tokens[index]:
                spare[place] = math.inf
        return taken

    def _in_order(self, ring: FloatArray) -> FloatArray:
        begin = self._first % NUM_BUCKETS
        return np.concatenate((ring[begin:], ring[:begin]))

    def _put(self, bucket: int, request_id: str, num_tokens: float) -> None:
        index = bucket % NUM_BUCKETS
        self._places[request_id] = (bucket, num_tokens)
        self._tokens[index] += num_tokens
        heapq.heappush(self._heaps[index], (-num_tokens, request_id))
        self._largest[index] = max(self._largest[index], num_tokens)

    def _clean(self, index: int) -> None:
        heap = self._heaps[index]
        while heap and not self._is_here(heap[0], index):
            heapq.heappop(heap)
        self._largest[index] = -heap[0][0] if heap else 0
        if not heap:
            self._tokens[index] = 0.0

    def _is_here(self, entry: tuple[float, str], index: int) -> bool:
        place = self._places.get(entry[1])
        return place is not None and place[1] == -entry[0] and place[0] % NUM_BUCKETS == index

    def _let_in(self) -> None:
        """What was outside and is near now."""
        while self._later and self._later[0][0] < self._first + NUM_BUCKETS:
            bucket, request_id, num_tokens = heapq.heappop(self._later)
            if self._outside.get(request_id) == bucket:
                del self._outside[request_id]
                self._put(max(bucket, self._first), request_id, num_tokens)


def due_of(request: QueuedRequest, *, patience_seconds: float) -> float:
    """When its first token is due; one without targets is given so long."""
    due = request.first_token_due_seconds
    return due if due < math.inf else request.arrived_seconds + patience_seconds
