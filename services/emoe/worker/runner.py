"""Runs the engine on a thread of its own, and brings requests in and tokens out.

The thread alone touches the engine; others leave commands, which it carries out between two steps. Events go to the
event loop once a step, or once an interval while steps are shorter: to wake the loop, and to send a message, costs more
than a small model's token. An engine that fails is rebuilt: its requests end with an error, and the runner is not
ready meanwhile.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from emoe.core.errors import NotReadyError
from emoe.core.schedule.step_cost_fit import FittedCosts, StepCostFit
from emoe.worker.build import EngineParts
from emoe.worker.engine import Engine
from emoe.worker.sequence import Sequence, TokenEvent

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.25
LOADING_SECONDS = 0.01
COMPANY_SECONDS = 0.1
"""How long after its last step an idle engine still expects as many requests at once as it had then."""
ARRIVAL_SECONDS = 0.004
GATHER_SECONDS = 0.03
"""It waits for them this long at most, and no longer than ARRIVAL_SECONDS for each."""
MAX_REBUILDS = 5
REBUILD_WINDOW_SECONDS = 300.0

T = TypeVar("T")
Sink = Callable[[TokenEvent], None]


class EngineRunner:
    """`on_ready(bool)` is called on the event loop whenever readiness changes."""

    def __init__(
        self,
        parts: EngineParts,
        *,
        loop: asyncio.AbstractEventLoop,
        on_ready: Callable[[bool], None],
        stream_interval_seconds: float = 0.0,
    ) -> None:
        self._parts = parts
        self._engine: Engine = parts.build_engine()
        self._fit = StepCostFit(step_tokens=self._engine.step_tokens, loads_misses=parts.options.miss_policy == "load")
        self._loop = loop
        self._on_ready = on_ready
        self._stream_interval_seconds = stream_interval_seconds
        self._held: list[TokenEvent] = []
        self._delivered_seconds = 0.0
        self._commands: collections.deque[Callable[[Engine], None]] = collections.deque()
        self._sinks: dict[str, tuple[Sequence, Sink]] = {}
        self._wake = threading.Event()
        self._stopping = False
        self._asked: set[asyncio.Future[Any]] = set()
        self._rebuilds: list[float] = []
        self._company = 0
        self._idle_since_seconds = time.monotonic()
        self.failure: BaseException | None = None
        self.finished = asyncio.Event()
        self.news = asyncio.Event()
        """Set when a plan was applied, or the coming routing is to be foretold; whoever waits for it unsets it."""
        self._told = 0, 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def stop(self, *, timeout_seconds: float = 10.0) -> None:
        self._stopping = True
        self._wake.set()
        await asyncio.to_thread(self._thread.join, timeout_seconds)

    def submit(self, sequence: Sequence, sink: Sink) -> None:
        """On the event loop. `sink` gets every event of the sequence, on the event loop, the last one finished."""
        self._check_alive()
        self._sinks[sequence.sequence_id] = sequence, sink
        self._command(lambda engine: engine.add(sequence))

    def cancel(self, sequence_id: str) -> None:
        """On the event loop. The sequence leaves before the next step; its sink hears no more."""
        if self._sinks.pop(sequence_id, None) is not None:
            self._command(lambda engine: engine.cancel(sequence_id))

    @property
    def num_requests(self) -> int:
        return len(self._sinks)

    @property
    def step_costs(self) -> FittedCosts | None:
        """What its steps take; None before enough of them."""
        return self._fit.told

    async def ask(self, question: Callable[[Engine], T], *, timeout_seconds: float = 30.0) -> T:
        """Runs `question` between two steps. NotReadyError if the engine ended, or does not come round to it in time:
        then it is not asked any more."""
        self._check_alive()
        answer: asyncio.Future[T] = self._loop.create_future()

        def carry_out(engine: Engine) -> None:
            if answer.done():
                return
            try:
                result = question(engine)
            except Exception as error:  # noqa: BLE001 - handed to the one who asked
                self._tell(_settle, answer, None, error)
            else:
                self._tell(_settle, answer, result, None)

        self._asked.add(answer)
        self._command(carry_out)
        try:
            return await asyncio.wait_for(answer, timeout_seconds)
        except TimeoutError:
            raise NotReadyError(f"the engine did not answer within {timeout_seconds:g} s") from None
        finally:
            self._asked.discard(answer)

    def _check_alive(self) -> None:
        if self.finished.is_set():
            raise NotReadyError("the engine of this worker has ended; it comes back when the process is started again")

    def _command(self, command: Callable[[Engine], None]) -> None:
        self._commands.append(command)
        self._wake.set()

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
        except BaseException as error:
            self.failure = error
            log.exception("the engine's thread ends")
        finally:
            self._tell(self._end)

    def _tell(self, callback: Callable[..., None], *arguments: object) -> None:
        """From the engine's thread to the event loop, which may have closed while a long step ran."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _end(self) -> None:
        """The thread has ended: whoever still waits for it is told."""
        self.finished.set()
        for answer in self._asked:
            _settle(answer, None, NotReadyError("the engine of this worker has ended"))
        self._deliver(_failures([sequence for sequence, _ in self._sinks.values()], "the engine has ended; try again"))

    def _turn(self) -> None:
        try:
            was_idle = not self._engine.has_work
            self._carry_out()
            if was_idle and self._engine.has_work:
                self._gather()
            if self._engine.has_work:
                self._step(goes_on=not was_idle)
            else:
                self._idle()
            self._tell_news()
        except Exception:
            log.exception("a step failed; the engine is rebuilt")
            self._rebuild()

    def _tell_news(self) -> None:
        now = self._engine.num_moments, self._engine.residency.applied_epoch
        if now != self._told:
            self._told = now
            self._tell(self.news.set)

    def _carry_out(self) -> None:
        self._wake.clear()
        while self._commands:
            self._commands.popleft()(self._engine)

    def _gather(self) -> None:
        """Requests that ended together are followed by others together, but one by one: what the first is spared by
        starting alone, all others would wait for its prefill."""
        began = time.monotonic()
        expected = self._company if began - self._idle_since_seconds < COMPANY_SECONDS else 0
        self._company = 0
        while self._engine.num_waiting < expected and time.monotonic() - began < GATHER_SECONDS:
            if not self._wake.wait(ARRIVAL_SECONDS):
                return
            self._carry_out()

    def _step(self, *, goes_on: bool) -> None:
        """What is done between two steps that follow on each other is a cost of the second."""
        self._company = max(self._company, len(self._engine.sequences))
        began = time.monotonic()
        since = self._idle_since_seconds if goes_on else began
        if not self._engine.only_decodes:
            self._flush(began)
        self._held += self._engine.step()
        now = self._idle_since_seconds = time.monotonic()
        if self._engine.last_work is not None:
            self._fit.observe(self._engine.last_work, seconds=now - since)
        if not self._may_wait(now, step_seconds=now - began):
            self._flush(now)

    def _may_wait(self, now: float, *, step_seconds: float) -> bool:
        """Whether what is held goes out with the next step's: if that comes soon, and no answer begins or ends here."""
        soon = now + step_seconds - self._delivered_seconds < self._stream_interval_seconds
        return soon and not any(event.is_edge for event in self._held)

    def _flush(self, now: float) -> None:
        if self._held:
            self._tell(self._deliver, self._held)
            self._held, self._delivered_seconds = [], now

    def _idle(self) -> None:
        residency = self._engine.residency
        residency.advance(now_seconds=time.monotonic())
        self._wake.wait(IDLE_SECONDS if residency.is_settled else LOADING_SECONDS)

    def _deliver(self, events: list[TokenEvent]) -> None:
        for event in events:
            sequence_id = event.sequence.sequence_id
            known = self._sinks.pop(sequence_id, None) if event.finished else self._sinks.get(sequence_id)
            if known is not None:
                known[1](event)

    def _rebuild(self) -> None:
        now = time.monotonic()
        self._rebuilds = [*(t for t in self._rebuilds if now - t < REBUILD_WINDOW_SECONDS), now]
        if len(self._rebuilds) > MAX_REBUILDS:
            raise RuntimeError(f"the engine failed {len(self._rebuilds)} times in {REBUILD_WINDOW_SECONDS:.0f} s")
        self._tell(self._on_ready, False)
        ended = _failures(self._engine.sequences, "the engine failed in this step and was rebuilt; try again")
        counters, task_counts = self._engine.counters, self._engine.task_counts
        self._flush(now)
        self._engine = self._parts.build_engine()
        self._engine.counters, self._engine.task_counts = counters, task_counts
        self._tell(self._deliver, ended)
        self._tell(self._on_ready, True)


def _failures(sequences: list[Sequence], error: str) -> list[TokenEvent]:
    return [TokenEvent(sequence=sequence, finished=True, error=error) for sequence in sequences]


def _settle(future: asyncio.Future[Any], result: object, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
