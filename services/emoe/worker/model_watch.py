"""Waiting for the loader's model: a worker without one of its own starts when the loader is ready."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import grpc

from emoe.runtime.grids import ModelId, parse_model
from emoe.v1 import loader_pb2 as pb
from emoe.worker.loader_source import RETRY_SECONDS

log = logging.getLogger(__name__)

SAY_AGAIN_SECONDS = 10.0


async def wait_until_ready(stub: Any) -> ModelId:
    """However often the loader goes or fails: the caller sets the deadline."""
    teller = _Teller()
    while True:
        call = stub.WatchModel(pb.WatchModelRequest(), wait_for_ready=True)
        try:
            async for message in call:
                teller.tell(message)
                if message.phase == pb.MODEL_PHASE_READY:
                    return parse_model(message.geometry.model)
        except grpc.aio.AioRpcError as error:
            log.info("the loader is away (%s); waiting for it", error.details())
        finally:
            call.cancel()
        await asyncio.sleep(RETRY_SECONDS)


class _Teller:
    """A line in the log a phase, and now and then while it lasts."""

    def __init__(self) -> None:
        self._phase: int = pb.MODEL_PHASE_UNSPECIFIED
        self._told_seconds = 0.0

    def tell(self, message: pb.WatchModelResponse) -> None:
        now = time.monotonic()
        if message.phase == self._phase and now - self._told_seconds < SAY_AGAIN_SECONDS:
            return
        self._phase, self._told_seconds = message.phase, now
        if message.phase == pb.MODEL_PHASE_FAILED:
            failure = message.failure
            log.warning("the loader has no model yet: %s: %s", failure.reason, failure.message)
            return
        log.info(
            "the loader's model %s is %s: %d of %d bytes, %.0f a second",
            message.source,
            pb.ModelPhase.Name(message.phase).removeprefix("MODEL_PHASE_").lower(),
            message.num_bytes_done,
            message.num_bytes_total,
            message.bytes_per_second,
        )
