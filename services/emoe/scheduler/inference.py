"""The Open Inference Protocol beside our own API: another way to ask, with one way behind it.

Each inference goes through the front door's `generate`, so queue, deadlines, retries and errors are that one's. What
differs is here: the shape of the messages, and streams that carry many requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.metadata
from collections.abc import AsyncIterator, Awaitable, Callable
from reprlib import repr as brief
from typing import Any

import grpc

from emoe.core.errors import EmoeError, InvalidRequestError, NotReadyError
from emoe.oip import open_inference_pb2 as oip
from emoe.oip import open_inference_pb2_grpc as rpc
from emoe.runtime.errors import status_of
from emoe.scheduler.inference_messages import (
    FINAL,
    MODEL_VERSION,
    AnswerParts,
    Inference,
    describe_model,
    parse_inference,
)
from emoe.scheduler.settings import SchedulerSettings
from emoe.scheduler.workers import WorkerPool

SERVICE = "inference.GRPCInferenceService"
MAX_REQUESTS_PER_STREAM = 64
"""Of one ModelStreamInfer at once; further ones are not read until one is answered."""

Context = grpc.aio.ServicerContext[Any, Any]
Generate = Callable[[bytes, Any], Awaitable[None]]
Abort = Callable[..., Awaitable[Any]]
Outbox = asyncio.Queue[oip.ModelStreamInferResponse | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _InnerCall:
    """What `generate` uses of a gRPC context, for an answer that does not go out as it is."""

    write: Callable[[bytes], Awaitable[None]]
    abort: Abort
    time_remaining: Callable[[], float | None]


class _FailedError(Exception):
    """One request of a stream failed; the others go on."""


class InferenceServicer(rpc.GRPCInferenceServiceServicer):
    """`generate` is the front door's. `stopping` is set when the service drains."""

    def __init__(
        self, settings: SchedulerSettings, *, generate: Generate, pool: WorkerPool, stopping: asyncio.Event
    ) -> None:
        self._model_name = settings.model_name
        self._max_request_bytes = settings.max_request_bytes
        self._generate = generate
        self._pool = pool
        self._stopping = stopping

    def add_to(self, server: grpc.aio.Server) -> None:
        rpc.add_GRPCInferenceServiceServicer_to_server(self, server)

    async def ServerLive(self, _request: oip.ServerLiveRequest, _context: Context) -> oip.ServerLiveResponse:
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, _request: oip.ServerReadyRequest, _context: Context) -> oip.ServerReadyResponse:
        return oip.ServerReadyResponse(ready=self._pool.found_ready.is_set() and not self._stopping.is_set())

    async def ServerMetadata(
        self, _request: oip.ServerMetadataRequest, _context: Context
    ) -> oip.ServerMetadataResponse:
        return oip.ServerMetadataResponse(name="emoe", version=importlib.metadata.version("emoe"))

    async def ModelReady(self, request: oip.ModelReadyRequest, context: Context) -> oip.ModelReadyResponse:
        await self._check_model(request.name, request.version, context.abort)
        return oip.ModelReadyResponse(ready=self._pool.num_usable > 0)

    async def ModelMetadata(self, request: oip.ModelMetadataRequest, context: Context) -> oip.ModelMetadataResponse:
        await self._check_model(request.name, request.version, context.abort)
        return describe_model(self._model_name)

    async def ModelInfer(self, request: oip.ModelInferRequest, context: Context) -> oip.ModelInferResponse:
        await self._check_model(request.model_name, request.model_version, context.abort)
        inference = parse_inference(request, max_bytes=self._max_request_bytes)
        if inference.stream:
            raise InvalidRequestError("'stream' is for ModelStreamInfer; ModelInfer gives the whole answer at once")
        parts = AnswerParts(inference)

        async def write(data: bytes) -> None:
            parts.take(data)

        await self._generate(
            inference.payload,
            _InnerCall(write=write, abort=context.abort, time_remaining=_deadline_of(inference, context)),
        )
        return parts.give()

    async def ModelStreamInfer(  # type: ignore[override] # it writes, where the generated type has it yield
        self, requests: AsyncIterator[oip.ModelInferRequest], context: Context
    ) -> None:
        """Requests run side by side. A drain lets them finish and takes no more; a client that leaves ends them all."""
        slots = asyncio.Semaphore(MAX_REQUESTS_PER_STREAM)
        outbox: Outbox = asyncio.Queue(maxsize=MAX_REQUESTS_PER_STREAM)

        async def answer(request: oip.ModelInferRequest) -> None:
            try:
                await self._answer_in_stream(request, context, outbox)
            finally:
                slots.release()

        async with asyncio.TaskGroup() as writing:
            writing.create_task(_write_all(outbox, context))
            async with asyncio.TaskGroup() as answering:
                async for request in _until(self._stopping, requests):
                    await slots.acquire()
                    answering.create_task(answer(request))
            await outbox.put(None)
        if self._stopping.is_set():
            raise NotReadyError("this service is shutting down; open a stream to another or come back")

    async def _answer_in_stream(self, request: oip.ModelInferRequest, context: Context, outbox: Outbox) -> None:
        try:
            await self._check_model(request.model_name, request.model_version, _fail)
            inference = parse_inference(request, max_bytes=self._max_request_bytes)
            parts = AnswerParts(inference)

            async def write(data: bytes) -> None:
                parts.take(data)
                if parts.finished or (inference.stream is not False and parts.worth_sending):
                    await outbox.put(_streamed(parts))

            await self._generate(
                inference.payload,
                _InnerCall(write=write, abort=_fail, time_remaining=_deadline_of(inference, context)),
            )
        except EmoeError as error:
            code, details, _ = status_of(error) or (grpc.StatusCode.INTERNAL, str(error), ())
            await outbox.put(_failed(request, f"{code.name}: {details}"))
        except _FailedError as error:
            await outbox.put(_failed(request, str(error)))

    async def _check_model(self, name: str, version: str, abort: Abort) -> None:
        if name != self._model_name:
            text = f"no model {brief(name)} is served here; there is {self._model_name!r}"
            await abort(grpc.StatusCode.NOT_FOUND, text)
        if version not in ("", MODEL_VERSION):
            text = f"model {name!r} has no version {brief(version)}; leave it out, or take {MODEL_VERSION!r}"
            await abort(grpc.StatusCode.NOT_FOUND, text)


async def _fail(code: grpc.StatusCode, details: str = "", _metadata: Any = ()) -> None:
    raise _FailedError(f"{code.name}: {details}")


def _deadline_of(inference: Inference, context: Context) -> Callable[[], float | None]:
    """The call's own, or the request's `timeout` if that is sooner."""

    def time_remaining() -> float | None:
        given = [limit for limit in (context.time_remaining(), inference.timeout_seconds) if limit is not None]
        return min(given, default=None)

    return time_remaining


def _streamed(parts: AnswerParts) -> oip.ModelStreamInferResponse:
    final = parts.finished
    response = oip.ModelStreamInferResponse(infer_response=parts.give())
    response.infer_response.parameters[FINAL].bool_param = final
    return response


def _failed(request: oip.ModelInferRequest, message: str) -> oip.ModelStreamInferResponse:
    response = oip.ModelStreamInferResponse(error_message=message)
    response.infer_response.model_name = request.model_name
    response.infer_response.id = request.id
    response.infer_response.parameters[FINAL].bool_param = True
    return response


async def _write_all(outbox: Outbox, context: Context) -> None:
    """One after another, as gRPC wants it, and apart from the answers: a write that a deadline broke off would bar the
    stream."""
    while (response := await outbox.get()) is not None:
        await context.write(response)


async def _until(
    stopping: asyncio.Event, requests: AsyncIterator[oip.ModelInferRequest]
) -> AsyncIterator[oip.ModelInferRequest]:
    """What is read before the client ends the stream or `stopping` is set."""
    stop = asyncio.ensure_future(stopping.wait())
    read: asyncio.Future[oip.ModelInferRequest | None] | None = None
    try:
        while not stop.done():
            read = asyncio.ensure_future(anext(requests, None))
            await asyncio.wait((read, stop), return_when=asyncio.FIRST_COMPLETED)
            if not read.done() or (request := await read) is None:
                return
            yield request
    finally:
        stop.cancel()
        if read is not None and not read.done():
            read.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await read
