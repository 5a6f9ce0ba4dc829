"""The bounded queue, and admission from it: the loop round the AdmissionPolicy.

Admission runs where something changed (an arrival, an end, a worker's report) and never waits, so a request that finds
room starts at once. A request holds its place from arrival to its last token; leaving the place frees all it took.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import time
from collections.abc import AsyncIterator, Callable

from emoe.core.admission import AdmissionPolicy, Waiting
from emoe.core.errors import QueueFullError
from emoe.scheduler.client import TaskLoad
from emoe.scheduler.workers import Worker, WorkerPool

MIN_RETRY_SECONDS = 0.1
MAX_RETRY_SECONDS = 30.0
_NUM_ADMISSIONS_KEPT = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ticket:
    """What dispatch knows of a request."""

    task: str
    arrived_seconds: float
    ttft_seconds: float | None
    size_bytes: int
    num_prompt_tokens: int
    num_expected_tokens: int
    max_tokens: int

    @property
    def num_tokens_to_come(self) -> int:
        """Of the prompt, and of the answer as expected."""
        return self.num_prompt_tokens + self.num_expected_tokens

    def waiting(self, place_id: str) -> Waiting:
        return Waiting(
            request_id=place_id,
            task=self.task,
            num_tokens=self.num_prompt_tokens + self.max_tokens,
            arrived_seconds=self.arrived_seconds,
            ttft_seconds=self.ttft_seconds,
        )


class _Place:
    def __init__(self, ticket: Ticket, place_id: str, *, again: bool) -> None:
        self.ticket = ticket
        self.again = again
        self.waiting = ticket.waiting(place_id)
        self.worker: Worker | None = None
        self.admitted: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()


class Dispatcher:
    """`changed` is set whenever `loads` may have changed; its one reader clears it."""

    def __init__(
        self,
        *,
        policy: AdmissionPolicy,
        pool: WorkerPool,
        max_requests: int,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.changed = asyncio.Event()
        self.num_prompts = 0
        self._policy = policy
        self._pool = pool
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._clock = clock
        self._serial = itertools.count()
        self._queue: dict[str, _Place] = {}
        self._queued_bytes = 0
        self._running: set[_Place] = set()
        self._admitted_seconds: collections.deque[float] = collections.deque(maxlen=_NUM_ADMISSIONS_KEPT)
        pool.on_change = self.admit

    @property
    def num_waiting(self) -> int:
        return len(self._queue)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @contextlib.asynccontextmanager
    async def place(self, ticket: Ticket, *, again: bool = False) -> AsyncIterator[Worker]:
        """Wait for a worker and hold one of its sequences. QueueFullError at once when there is no room to wait.

        `again`: its first worker died or was full, so it was let in, and counted, before: the bounds do not apply."""
        if not again:
            self._check_room(ticket)
        place = self._enter(ticket, again=again)
        try:
            self.admit()
            yield await place.admitted
        finally:
            self._leave(place)
            self.admit()

    def admit(self) -> None:
        """Start every waiting request that the policy lets start now."""
        while self._queue and (workers := self._pool.capacities()):
            choice = self._policy.pick(self._eligible(), workers)
            if choice is None:
                break
            self._start(self._unqueue(choice.request_id), self._pool.get(choice.worker_id))
        self.changed.set()

    def loads(self) -> tuple[TaskLoad, ...]:
        running = collections.Counter(place.ticket.task for place in self._running)
        waiting = collections.Counter(place.ticket.task for place in self._queue.values())
        prompt_tokens: collections.Counter[str] = collections.Counter()
        expected_tokens: collections.Counter[str] = collections.Counter()
        waiting_tokens: collections.Counter[str] = collections.Counter()
        for place in self._queue.values():
            waiting_tokens[place.ticket.task] += place.ticket.num_tokens_to_come
        for place in itertools.chain(self._running, self._queue.values()):
            prompt_tokens[place.ticket.task] += place.ticket.num_prompt_tokens
            expected_tokens[place.ticket.task] += place.ticket.num_expected_tokens
        return tuple(
            TaskLoad(
                task=task,
                num_running=running[task],
                num_waiting=waiting[task],
                num_prompt_tokens=prompt_tokens[task],
                num_expected_tokens=expected_tokens[task],
                num_waiting_tokens=waiting_tokens[task],
            )
            for task in sorted(prompt_tokens)
        )

    def _eligible(self) -> list[Waiting]:
        """A place whose client left stays in the queue until its task has run, but must not be picked."""
        limit = self._pool.max_tokens_per_sequence()
        return [_fitted(place.waiting, limit) for place in self._queue.values() if not place.admitted.done()]

    def _check_room(self, ticket: Ticket) -> None:
        """An empty queue always has room for one: it may start at once."""
        if not self._queue:
            return
        if len(self._queue) >= self._max_requests:
            self._refuse(f"{len(self._queue)} requests are waiting, the most that this scheduler holds")
        if self._queued_bytes + ticket.size_bytes > self._max_bytes:
            self._refuse(f"the waiting requests take {self._queued_bytes} bytes, of {self._max_bytes} at most")

    def _refuse(self, reason: str) -> None:
        seconds = self._retry_after_seconds()
        raise QueueFullError(f"{reason}; try again in {seconds:.1f} s", retry_after_seconds=seconds)

    def _retry_after_seconds(self) -> float:
        """How long the queue of now takes at the rate of the last admissions, between two bounds."""
        if len(self._admitted_seconds) < 2:
            return 1.0
        seconds_per_request = (self._clock() - self._admitted_seconds[0]) / len(self._admitted_seconds)
        return min(max(len(self._queue) * seconds_per_request, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)

    def _enter(self, ticket: Ticket, *, again: bool) -> _Place:
        place = _Place(ticket, str(next(self._serial)), again=again)
        self._queue[place.waiting.request_id] = place
        self._queued_bytes += ticket.size_bytes
        return place

    def _start(self, place: _Place, worker: Worker) -> None:
        place.worker = worker
        place.admitted.set_result(worker)
        worker.num_in_flight += 1
        self._running.add(place)
        self._admitted_seconds.append(self._clock())
        self.num_prompts += not place.again

    def _unqueue(self, place_id: str) -> _Place:
        place = self._queue.pop(place_id)
        self._queued_bytes -= place.ticket.size_bytes
        return place

    def _leave(self, place: _Place) -> None:
        if place.waiting.request_id in self._queue:
            self._unqueue(place.waiting.request_id)
        if place.worker is not None:
            place.worker.num_in_flight -= 1
            self._running.discard(place)


def _fitted(waiting: Waiting, limit: int) -> Waiting:
    """The token count is an estimate: one that no worker could hold goes to the largest, which knows better."""
    return waiting if waiting.num_tokens <= limit else dataclasses.replace(waiting, num_tokens=limit)
