"""Streams routing counts to the predictor, so that it keeps learning. Counts wait, bounded, while it is away."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import numpy as np

from emoe.core.errors import NotReadyError
from emoe.core.experts import CountGrid, ExpertGrid
from emoe.runtime.cancellation import this_task_is_cancelled
from emoe.runtime.channels import open_channel
from emoe.runtime.grids import ModelId, counts_to_proto, grid_to_proto, model_to_proto
from emoe.runtime.reconnect import keep_connected
from emoe.v1 import predictor_pb2 as pb
from emoe.v1 import predictor_pb2_grpc
from emoe.worker.engine import Engine
from emoe.worker.runner import EngineRunner

MAX_COUNT = 2**32 - 1


class RoutingReporter:
    def __init__(
        self,
        *,
        predictor: str,
        model: ModelId,
        grid: ExpertGrid,
        runner: EngineRunner,
        worker_id: str,
        report_seconds: float,
    ) -> None:
        self._predictor = predictor
        self._model = model
        self._grid = grid
        self._runner = runner
        self._worker_id = worker_id
        self._report_seconds = report_seconds
        self._unsent: dict[str, CountGrid] = {}

    async def run(self) -> None:
        """Until cancelled."""
        async with open_channel(self._predictor) as channel:
            stub = predictor_pb2_grpc.PredictorServiceStub(channel)
            await keep_connected(f"the predictor at {self._predictor}", lambda: self._stream(stub))

    async def _stream(self, stub: Any) -> None:
        """One stream, until the predictor ends it. What was taken and not sent goes first on the next."""
        call = stub.ReportRouting()
        try:
            await call.wait_for_connection()
            while not call.done():
                await asyncio.sleep(self._report_seconds)
                await self._send(call)
            await call
        except asyncio.CancelledError:
            if this_task_is_cancelled():
                raise
        finally:
            call.cancel()

    async def _send(self, call: Any) -> None:
        """A report a task. A stream that has ended, or an engine in a long step, is left to the next turn."""
        with contextlib.suppress(asyncio.InvalidStateError, NotReadyError):
            if not self._unsent:
                self._unsent = await self._runner.ask(take_counts)
            for task, counts in list(self._unsent.items()):
                await call.write(self._report(task, counts))
                del self._unsent[task]

    def _report(self, task: str, counts: CountGrid) -> pb.ReportRoutingRequest:
        return pb.ReportRoutingRequest(
            model=model_to_proto(self._model),
            grid=grid_to_proto(self._grid),
            task=task,
            counts=counts_to_proto(np.minimum(counts, MAX_COUNT)),
            worker_id=self._worker_id,
        )


def take_counts(engine: Engine) -> dict[str, CountGrid]:
    counts, engine.task_counts = engine.task_counts, {}
    return counts
