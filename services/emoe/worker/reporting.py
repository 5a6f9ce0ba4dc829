"""Streams routing counts to the predictor, so that it keeps learning. Counts wait, bounded, while it is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import grpc
import numpy as np

from emoe.core.experts import CountGrid, ExpertGrid
from emoe.runtime.channels import open_channel
from emoe.runtime.grids import ModelId, counts_to_proto, grid_to_proto, model_to_proto
from emoe.v1 import predictor_pb2 as pb
from emoe.v1 import predictor_pb2_grpc
from emoe.worker.engine import Engine
from emoe.worker.runner import EngineRunner

log = logging.getLogger(__name__)

MIN_RETRY_SECONDS = 0.5
MAX_RETRY_SECONDS = 10.0
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

    async def run(self) -> None:
        """Until cancelled. Counts sent when the stream broke may be lost: learning bears it."""
        retry_seconds = MIN_RETRY_SECONDS
        async with open_channel(self._predictor) as channel:
            stub = predictor_pb2_grpc.PredictorServiceStub(channel)
            while True:
                try:
                    await stub.ReportRouting(self._reports())
                except grpc.aio.AioRpcError as error:
                    log.warning("the predictor at %s is away (%s); counts wait", self._predictor, error.details())
                await asyncio.sleep(retry_seconds)
                retry_seconds = min(2 * retry_seconds, MAX_RETRY_SECONDS)

    async def _reports(self) -> AsyncIterator[pb.ReportRoutingRequest]:
        while True:
            await asyncio.sleep(self._report_seconds)
            for task, counts in (await self._runner.ask(take_counts)).items():
                yield pb.ReportRoutingRequest(
                    model=model_to_proto(self._model),
                    grid=grid_to_proto(self._grid),
                    task=task,
                    counts=counts_to_proto(np.minimum(counts, MAX_COUNT)),
                    worker_id=self._worker_id,
                )


def take_counts(engine: Engine) -> dict[str, CountGrid]:
    counts, engine.task_counts = engine.task_counts, {}
    return counts
