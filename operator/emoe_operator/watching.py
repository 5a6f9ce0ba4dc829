"""kopf in a thread and an event loop of its own: it installs signal handlers and ends every task of its loop when it
stops, which here must touch nothing else. What it sees is handed to the main loop in order.

Its end is never silent: `run` returns only when asked to, and raises WatchEndedError when kopf ended by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import kopf

from emoe_operator.activity import WatchActivity, heard_by
from emoe_operator.errors import WatchEndedError
from emoe_operator.handlers import Sink, build_registry, watch_settings
from emoe_operator.kinds import Kind
from emoe_operator.login import Login
from emoe_operator.observed import Body
from emoe_operator.supervision import first_to_end

# That signals are not its business in this thread is as it should be.
logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)

STOP_SECONDS = 2.0
CLOSE_SECONDS = 0.2


class Watching:
    """`sink` is called in the loop that runs `run`."""

    def __init__(
        self,
        sink: Sink,
        *,
        namespaces: Sequence[str],
        activity: WatchActivity,
        on_response: Callable[[str, str, int], None],
    ) -> None:
        self._sink = sink
        self._namespaces = tuple(namespaces)
        self._response_class = heard_by(activity, on_response)

    async def run(self) -> None:
        """Until cancelled. The thread is given a moment to end, then left: it is a daemon."""
        ended = asyncio.get_running_loop().create_future()
        stopper = _Stopper()
        arguments = (asyncio.get_running_loop(), ended, stopper)
        threading.Thread(target=self._thread, args=arguments, name="kopf", daemon=True).start()
        try:
            error = await asyncio.shield(ended)
            raise WatchEndedError(f"the watches ended by themselves ({error or 'without a reason'})") from error
        finally:
            stopper.stop()
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                async with asyncio.timeout(STOP_SECONDS):
                    await ended

    def _thread(
        self, owner: asyncio.AbstractEventLoop, ended: asyncio.Future[BaseException | None], stopper: _Stopper
    ) -> None:
        error: BaseException | None = None
        try:
            asyncio.run(self._watch(owner, stopper))
        except BaseException as caught:  # noqa: BLE001 - handed over, whatever it is: the main loop decides
            error = caught
        with contextlib.suppress(RuntimeError):  # the main loop is closed: nobody asks any more
            owner.call_soon_threadsafe(_settle, ended, error)

    async def _watch(self, owner: asyncio.AbstractEventLoop, stopper: _Stopper) -> None:
        registry = build_registry(_Relay(owner, self._sink))
        login = Login(self._response_class)
        login.register(registry)
        operator = kopf.operator(
            registry=registry,
            settings=watch_settings(),
            standalone=True,
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            stop_flag=stopper.flag(),
        )
        await first_to_end(operator, login.broken())
        # Nobody waits for the connections of the watches that kopf has just closed.
        await asyncio.sleep(CLOSE_SECONDS)


def _settle(ended: asyncio.Future[BaseException | None], error: BaseException | None) -> None:
    if not ended.done():
        ended.set_result(error)


class _Stopper:
    """Ends kopf from another thread, also when it has not begun yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._flag: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def flag(self) -> asyncio.Event:
        event = asyncio.Event()
        with self._lock:
            self._flag = (asyncio.get_running_loop(), event)
            if self._stopped:
                event.set()
        return event

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._flag is None:
                return
            loop, event = self._flag
        with contextlib.suppress(RuntimeError):  # it has ended already
            loop.call_soon_threadsafe(event.set)


class _Relay:
    """Carries calls over to the loop of the sink, in their order."""

    def __init__(self, owner: asyncio.AbstractEventLoop, sink: Sink) -> None:
        self._owner = owner
        self._sink = sink

    def seen(self, kind: Kind, body: Body) -> None:
        self._call(self._sink.seen, kind, body)

    def deleted(self, kind: Kind, body: Body) -> None:
        self._call(self._sink.deleted, kind, body)

    def complete(self) -> None:
        self._call(self._sink.complete)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the main loop is closed
            self._owner.call_soon_threadsafe(function, *arguments)
