"""What stands round every call of every service: a span, a time limit, and the mapping of errors to status.

A handler is wrapped once, at its method's first call, and a streamed answer is written by the wrapped coroutine itself:
nothing here runs per message.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer

from emoe.core.errors import NotReadyError
from emoe.runtime.errors import status_of
from emoe.runtime.telemetry import incoming_context

log = logging.getLogger(__name__)

# grpc.aio hands a handler the request, or the iterator of requests, and the context; the types differ by method.
Context = Any
Handler = Callable[[Any, Context], Awaitable[Any]]


class StandingCalls:
    """Streams that live as long as their peers (heartbeats, watches): ended by us when the service drains."""

    def __init__(self) -> None:
        self.methods: set[str] = set()
        self.ended = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def includes(self, method: str) -> bool:
        return method in self.methods or method.startswith("/grpc.")

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """For the duration of one standing call, in its own task."""
        if self.ended:
            raise NotReadyError("this service is shutting down; connect to another or come back")
        task = asyncio.current_task()
        assert task is not None, "gRPC runs every call in a task"
        self._tasks.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self.ended:
                raise
            task.uncancel()
            raise NotReadyError("this service is shutting down; connect to another or come back") from None
        finally:
            self._tasks.discard(task)

    def end(self) -> None:
        self.ended = True
        for task in self._tasks:
            task.cancel()


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """`max_call_seconds` ends a call whose client set no deadline or a later one; standing calls have none."""

    def __init__(self, *, tracer: Tracer, standing: StandingCalls, max_call_seconds: float) -> None:
        self._tracer = tracer
        self._standing = standing
        self._max_call_seconds = max_call_seconds
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: Any) -> Any:
        behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        run = _writing(behaviour) if inspect.isasyncgenfunction(behaviour) else behaviour
        guard = self._guard_standing if self._standing.includes(method) else self._guard_call
        traced = not method.startswith("/grpc.")

        async def call(request: Any, context: Context) -> Any:
            if not traced:
                return await self._mapped(method, guard, run, request, context)
            with self._span(method, context) as span:
                try:
                    return await self._mapped(method, guard, run, request, context)
                finally:
                    _finish(span, context)

        return _HANDLER_KINDS[handler.request_streaming, handler.response_streaming](
            call,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    @contextlib.contextmanager
    def _span(self, method: str, context: Context) -> Iterator[trace.Span]:
        parent = incoming_context(context.invocation_metadata())
        name = method.removeprefix("/")
        attributes = {"rpc.system.name": "grpc", "rpc.method": name}
        span = self._tracer.start_span(name, context=parent, kind=SpanKind.SERVER, attributes=attributes)
        token = otel_context.attach(trace.set_span_in_context(span, parent))
        try:
            yield span
        finally:
            span.end()
            otel_context.detach(token)

    async def _mapped(self, method: str, guard: _Guard, run: Handler, request: Any, context: Context) -> Any:
        try:
            return await guard(run, request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - the one place where any failure becomes a status
            await _abort(method, context, root_cause(error))

    async def _guard_standing(self, run: Handler, request: Any, context: Context) -> Any:
        with self._standing.hold():
            return await run(request, context)

    async def _guard_call(self, run: Handler, request: Any, context: Context) -> Any:
        remaining = context.time_remaining()
        if remaining is not None and remaining <= self._max_call_seconds:
            return await run(request, context)
        try:
            async with asyncio.timeout(self._max_call_seconds) as limit:
                return await run(request, context)
        except TimeoutError:
            if not limit.expired():
                raise
            text = f"the call took longer than this service's limit of {self._max_call_seconds:g} s"
            return await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, text)


_Guard = Callable[[Handler, Any, Context], Awaitable[Any]]

_HANDLER_KINDS: dict[tuple[bool, bool], Callable[..., Any]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _writing(generate: Callable[[Any, Context], Any]) -> Handler:
    """An async generator as a coroutine that writes: a wrapper round a generator would cost a hop per message."""

    async def write_all(request: Any, context: Context) -> None:
        async with contextlib.aclosing(generate(request, context)) as messages:
            async for message in messages:
                await context.write(message)

    return write_all


async def _abort(method: str, context: Context, error: Exception) -> None:
    status = status_of(error)
    if status is None:
        log.error("%s failed unexpectedly", method, exc_info=error)
        status = grpc.StatusCode.INTERNAL, f"{method} failed unexpectedly; the service's log has the reason", ()
    code, details, metadata = status
    await context.abort(code, details, metadata)


def root_cause(error: Exception) -> Exception:
    """The error inside a task group's wrapping, when it is the only one."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _finish(span: trace.Span, context: Context) -> None:
    if not span.is_recording():
        return
    code = context.code()
    name = getattr(code, "name", None) or ("CANCELLED" if context.cancelled() else "OK")
    span.set_attribute("rpc.response.status_code", name)
    if name not in ("OK", "CANCELLED"):
        span.set_status(Status(StatusCode.ERROR, context.details() or name))
