"""One worker's answer, passed on message by message as the bytes they are.

Only the first message is touched: the front door's own fields are appended to it. Two serialized messages end to end
are one merged message, so nothing is written anew; each is read only for how many tokens it brings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import grpc

from emoe.core.generation import Usage
from emoe.runtime.cancellation import this_task_is_cancelled
from emoe.runtime.messages import parse_piece
from emoe.scheduler.client import ByteStream
from emoe.scheduler.worker import Worker
from emoe.v1 import generation_pb2

_LOST_CODES = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN})


class WorkerLostError(Exception):
    """The worker went away, or was given up, before its answer was whole."""

    def __init__(self, worker: Worker, reason: str, *, num_messages: int) -> None:
        super().__init__(f"worker {worker.worker_id} is unavailable ({reason})")
        self.num_messages = num_messages


class WorkerFullError(Exception):
    """The worker took no more requests, though its report had let us think so; nothing of the answer was made."""

    def __init__(self, worker: Worker, error: grpc.aio.AioRpcError) -> None:
        super().__init__(f"worker {worker.worker_id} is full ({error.details()})")
        self.error = error


async def relay(
    worker: Worker,
    call: ByteStream,
    write: Callable[[bytes], Awaitable[None]],
    *,
    front_fields: bytes,
    may_move: bool = False,
    count_tokens: Callable[[int], None] = lambda _num_tokens: None,
) -> Usage | None:
    """Until the answer's end: its usage. WorkerLostError, WorkerFullError, or the worker's own AioRpcError about the
    request. `may_move`: while nothing of the answer came it may be given up for another worker's.

    Leaving early, by cancellation too, cancels the worker's call."""
    worker.calls.add(call)
    if may_move:
        worker.movable_calls.add(call)
    num_messages = 0
    piece = generation_pb2.GenerateResponse()
    try:
        async for message in call:
            num_messages += 1
            worker.movable_calls.discard(call)
            piece = generation_pb2.GenerateResponse.FromString(message)
            count_tokens(len(piece.token_ids))
            await write(message if num_messages > 1 else message + front_fields)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and not num_messages:
            raise WorkerFullError(worker, error) from error
        if error.code() not in _LOST_CODES:
            raise
        raise WorkerLostError(worker, error.details() or error.code().name, num_messages=num_messages) from error
    except asyncio.CancelledError:
        if this_task_is_cancelled():
            raise
        raise WorkerLostError(worker, "it stopped answering", num_messages=num_messages) from None
    finally:
        call.cancel()
        worker.calls.discard(call)
        worker.movable_calls.discard(call)
    return parse_piece(piece).usage


def front_fields(*, request_id: str, task: str, worker_id: str, queue_seconds: float) -> bytes:
    return generation_pb2.GenerateResponse(
        request_id=request_id, task=task, worker_id=worker_id, queue_seconds=queue_seconds
    ).SerializeToString()
