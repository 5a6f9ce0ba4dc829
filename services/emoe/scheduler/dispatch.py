"""The asyncio shell round the desk: requests wait here for their worker, and hold their place until their last token.

What waits, in which order, within which bounds and who gives way is the desk's; the clock, the timer and those who wait
are here. Admission runs where something changed and never waits, so a request that finds room starts at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator

import grpc

from emoe.core.errors import QueueFullError
from emoe.core.schedule.decisions import DecisionKind
from emoe.core.schedule.desk import LOOK_SECONDS, Desk, Refused
from emoe.core.schedule.policy import Admission
from emoe.core.schedule.request import QueuedRequest
from emoe.scheduler.client import TaskReport
from emoe.scheduler.tally import TaskTally
from emoe.scheduler.worker import Worker
from emoe.scheduler.workers import WorkerPool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seat:
    """Where a request runs, and what was foretold of it there. `num_waiting`: when it was admitted."""

    worker: Worker
    admission: Admission
    num_waiting: int


class Place:
    """One request's, from its arrival to its end."""

    def __init__(self, dispatcher: Dispatcher, request: QueuedRequest) -> None:
        self.request = request
        self.seat: Seat | None = None
        self.num_starts = 0
        self._dispatcher = dispatcher
        self._seated = self._new_future()
        self._num_tokens = 0

    async def seated(self) -> Seat:
        """Waits for a worker. QueueFullError when it must give way to another tenant's request."""
        return await self._seated

    def requeue(self, reason: str) -> None:
        """Its worker died or was full. It was let in, and counted, before: the bounds do not apply."""
        self._seated = self._new_future()
        self._dispatcher.requeue(self, reason)

    def wrote(self, num_tokens: int) -> None:
        """So many tokens of the answer more."""
        if num_tokens:
            is_first = self._num_tokens == 0
            self._num_tokens += num_tokens
            self._dispatcher.wrote(self.request.request_id, self._num_tokens, is_first=is_first)

    def start(self, seat: Seat) -> None:
        self.seat = seat
        self.num_starts += 1
        if not self._seated.done():
            self._seated.set_result(seat)

    def refuse(self, error: QueueFullError) -> None:
        if not self._seated.done():
            self._seated.set_exception(error)

    def leave(self) -> None:
        """Nobody waits any more: an error that came too late is nobody's."""
        if not self._seated.cancel() and not self._seated.cancelled():
            self._seated.exception()

    def _new_future(self) -> asyncio.Future[Seat]:
        return asyncio.get_running_loop().create_future()


class Dispatcher:
    """`changed` is set whenever `report` may have changed; its one reader clears it."""

    def __init__(self, *, desk: Desk, pool: WorkerPool, clock: Callable[[], float] = time.monotonic) -> None:
        self.changed = asyncio.Event()
        self.num_prompts = 0
        self.clock = clock
        self._desk = desk
        self._pool = pool
        self._tally = TaskTally()
        self._places: dict[str, Place] = {}
        self._serial = itertools.count(2)
        self._timer: asyncio.TimerHandle | None = None
        pool.on_change = self.admit

    @property
    def num_waiting(self) -> int:
        return self._desk.num_waiting

    @property
    def num_running(self) -> int:
        return self._desk.num_running

    @property
    def num_refused(self) -> int:
        return self._desk.num_refused

    @contextlib.contextmanager
    def place(self, request: QueuedRequest) -> Iterator[Place]:
        """QueueFullError at once when there is no room to wait. How the block is left is how the request ended."""
        place = self._enter(request)
        kind, reason = DecisionKind.FAILED, "the front door failed"
        try:
            self.admit()
            yield place
            kind, reason = DecisionKind.DONE, ""
        except BaseException as error:
            kind, reason = _how_it_ended(error)
            raise
        finally:
            self._leave(place, kind, reason)
            self.admit()

    def admit(self) -> None:
        """Start every waiting request that the policy lets start now."""
        for admission in self._desk.admit(self.clock()):
            self._start(self._places[admission.request.request_id], admission)
        if self._desk.num_waiting and self._pool.num_usable and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look_again)
        self.changed.set()

    def requeue(self, place: Place, reason: str) -> None:
        self._desk.requeue(place.request, self.clock(), reason=reason)
        self._unseat(place)
        self._tally.wait(place.request)
        self.admit()

    def wrote(self, request_id: str, num_tokens: int, *, is_first: bool) -> None:
        now = self.clock()
        if is_first:
            self._desk.first_token(request_id, now)
            self.admit()
        self._desk.progressed(request_id, num_tokens, now)

    def report(self) -> TaskReport:
        known = frozenset(worker.worker_id for worker in self._pool.workers())
        self._tally.forget_workers(known)
        return TaskReport(
            loads=self._tally.loads(),
            workers=self._tally.worker_tasks(self.clock()),
            num_prompts=self.num_prompts,
        )

    @property
    def num_entries(self) -> int:
        """In all tables of requests: 0 when nobody waits or runs."""
        return len(self._places) + self._desk.num_entries + self._tally.num_entries

    def _look_again(self) -> None:
        self._timer = None
        self.admit()

    def _enter(self, request: QueuedRequest) -> Place:
        """Ids are the clients', who may use one twice at the same time: the second gets a number."""
        while request.request_id in self._places:
            name = request.request_id.partition(" #")[0]
            request = dataclasses.replace(request, request_id=f"{name} #{next(self._serial)}")
        for refused in self._desk.arrive(request, self.clock()):
            self._refuse(refused)
        place = self._places[request.request_id] = Place(self, request)
        self._tally.wait(request)
        return place

    def _refuse(self, refused: Refused) -> None:
        """The newcomer by raising, or one that waits by what it waits for."""
        error = QueueFullError(
            f"{refused.reason}; try again in {refused.retry_after_seconds:.1f} s",
            retry_after_seconds=refused.retry_after_seconds,
        )
        place = self._places.pop(refused.request_id, None)
        if place is None:
            raise error
        self._tally.unwait(place.request)
        place.refuse(error)

    def _start(self, place: Place, admission: Admission) -> None:
        worker = self._pool.get(admission.worker_id)
        self._pool.take(worker)
        self._tally.start(place.request, worker.worker_id, self.clock())
        self.num_prompts += place.num_starts == 0
        place.start(Seat(worker=worker, admission=admission, num_waiting=self._desk.num_waiting))

    def _unseat(self, place: Place) -> None:
        """After the desk has ended or queued it: what the worker reports is the last word on what it can take."""
        if place.seat is not None:
            self._pool.release(place.seat.worker)
            self._tally.stop(place.request, place.seat.worker.worker_id)
            place.seat = None

    def _leave(self, place: Place, kind: DecisionKind, reason: str) -> None:
        """One that gave way to another has left already."""
        request = place.request
        place.leave()
        if self._places.get(request.request_id) is not place:
            return
        del self._places[request.request_id]
        if place.seat is None:
            self._tally.unwait(request)
        self._desk.end(request.request_id, self.clock(), kind, reason=reason)
        self._unseat(place)


def _how_it_ended(error: BaseException) -> tuple[DecisionKind, str]:
    if isinstance(error, asyncio.CancelledError):
        return DecisionKind.CANCELLED, "the client left, or this scheduler ends"
    if isinstance(error, TimeoutError):
        return DecisionKind.EXPIRED, "its deadline passed"
    if isinstance(error, grpc.aio.AioRpcError):
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DecisionKind.EXPIRED, "its deadline passed at the worker"
        return DecisionKind.FAILED, f"{error.code().name}: {error.details()}"
    return DecisionKind.FAILED, f"{type(error).__name__}: {error}"
