"""The one table from emoe's errors to gRPC status, used by the interceptor of every service."""

from __future__ import annotations

import math
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from emoe.core import errors

STATUS_OF: dict[type[errors.EmoeError], grpc.StatusCode] = {
    errors.InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnsupportedModelError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.CheckpointError: grpc.StatusCode.DATA_LOSS,
    errors.BudgetError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PlanError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.QueueFullError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.NotReadyError: grpc.StatusCode.UNAVAILABLE,
    errors.GenerationError: grpc.StatusCode.INTERNAL,
}

_RICH_DETAILS_KEY = "grpc-status-details-bin"
Metadata = tuple[tuple[str, Any], ...]


def status_of(error: Exception) -> tuple[grpc.StatusCode, str, Metadata] | None:
    """Code, text and trailing metadata for an error raised on purpose; None for any other, which is a bug."""
    code = next((STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF), None)
    if code is None:
        return None
    message = str(error)
    if isinstance(error, errors.QueueFullError):
        return code, message, _retry_details(message, error.retry_after_seconds)
    return code, message, ()


def retry_after_seconds(error: grpc.aio.AioRpcError) -> float | None:
    """What the server's google.rpc.RetryInfo asks for; None if it sent none."""
    for _, value in rich_details(error):
        for detail in status_pb2.Status.FromString(value).details:
            info = error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                return float(info.retry_delay.ToTimedelta().total_seconds())
    return None


def rich_details(error: grpc.aio.AioRpcError) -> Metadata:
    """The google.rpc.Status that came with an error, as metadata to pass on."""
    metadata: Any = error.trailing_metadata() or ()
    return tuple((key, value) for key, value in metadata if key == _RICH_DETAILS_KEY)


def _retry_details(message: str, seconds: float) -> Metadata:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromMilliseconds(math.ceil(seconds * 1000))
    detail = any_pb2.Any()
    detail.Pack(info)
    status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message=message, details=[detail])
    return tuple(rpc_status.to_status(status).trailing_metadata)
