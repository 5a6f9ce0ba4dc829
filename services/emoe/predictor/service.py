"""The predictor's gRPC edge: routing counts of the workers and the loader's profile in, demand for the loader out.

Parses every message once and hands typed values to `Learning`; what it raises becomes a status in the runtime. Knows
nothing of files or of how demand is computed.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc

from emoe.core.errors import InvalidRequestError, QueueFullError
from emoe.core.tasks import UNKNOWN, parse_task_name
from emoe.predictor.learning import Learning
from emoe.predictor.profile import ProfileUse
from emoe.predictor.receiving import receive
from emoe.runtime.grids import demand_to_proto, parse_counts, parse_grid, parse_model
from emoe.runtime.lifecycle import ServiceHost
from emoe.v1 import predictor_pb2 as pb
from emoe.v1 import predictor_pb2_grpc as rpc

SERVICE = "emoe.v1.PredictorService"
MAX_TASKS_ASKED = 256
MAX_TOKENS_ASKED = 1e12
MAX_REPORT_STREAMS = 256
MAX_PROFILES_AT_ONCE = 2
_RETRY_AFTER_SECONDS = 5.0

_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


class PredictorService(rpc.PredictorServiceServicer):
    def __init__(self, learning: Learning, use: ProfileUse, *, max_report_streams: int = MAX_REPORT_STREAMS) -> None:
        self._learning = learning
        self._use = use
        self._max_report_streams = max_report_streams
        self._num_report_streams = 0
        self._num_profiles_coming = 0

    def register(self, host: ServiceHost) -> None:
        host.register(
            SERVICE, lambda server: rpc.add_PredictorServiceServicer_to_server(self, server), standing=["ReportRouting"]
        )

    async def Predict(self, request: pb.PredictRequest, _context: Context) -> pb.PredictResponse:
        model, grid = parse_model(request.model), parse_grid(request.grid)
        prediction = self._learning.predict(model.digest, grid, _parse_task_tokens(request.task_tokens))
        return pb.PredictResponse(
            demand=demand_to_proto(prediction.demand),
            num_choices_learnt=prediction.num_choices_learnt,
            has_profile=prediction.has_profile,
            predictor=prediction.predictor,
            stepped_back=prediction.stepped_back,
        )

    async def LoadProfile(
        self, request_iterator: AsyncIterator[pb.LoadProfileRequest], _context: Context
    ) -> pb.LoadProfileResponse:
        """One that is refused leaves the last in place."""
        if self._num_profiles_coming >= MAX_PROFILES_AT_ONCE:
            raise QueueFullError(
                f"{MAX_PROFILES_AT_ONCE} profiles are on their way already", retry_after_seconds=_RETRY_AFTER_SECONDS
            )
        self._num_profiles_coming += 1
        try:
            given = await receive(request_iterator)
            # A large one takes seconds: reports and questions go on meanwhile.
            beforehand, sha256 = await asyncio.to_thread(lambda: (self._use.parse(given), given.sha256()))
        finally:
            self._num_profiles_coming -= 1
        self._learning.begin_from(given.digest, given.grid, beforehand, sha256=sha256)
        _log.info("model %s begins from a profile of %d tasks", given.digest[:12], len(beforehand.priors))
        return pb.LoadProfileResponse(num_tasks=len(beforehand.priors))

    async def ReportRouting(
        self, request_iterator: AsyncIterator[pb.ReportRoutingRequest], _context: Context
    ) -> pb.ReportRoutingResponse:
        if self._num_report_streams >= self._max_report_streams:
            raise QueueFullError(
                f"{self._max_report_streams} workers report already; is one of them opening a stream a report?",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        self._num_report_streams += 1
        num_reports = 0
        try:
            async for report in request_iterator:
                self._observe(report)
                num_reports += 1
        finally:
            self._num_report_streams -= 1
        return pb.ReportRoutingResponse(num_reports=num_reports)

    def _observe(self, report: pb.ReportRoutingRequest) -> None:
        model, grid = parse_model(report.model), parse_grid(report.grid)
        self._learning.observe(model.digest, grid, _parse_task(report.task), parse_counts(report.counts, grid))


def _parse_task(name: str) -> str:
    try:
        return parse_task_name(name) if name else UNKNOWN
    except ValueError as error:
        raise InvalidRequestError(str(error)) from error


def _parse_task_tokens(message: Mapping[str, float]) -> dict[str, float]:
    if len(message) > MAX_TASKS_ASKED:
        raise InvalidRequestError(f"task_tokens names {len(message)} tasks; at most {MAX_TASKS_ASKED} at once")
    for task, tokens in message.items():
        if not (math.isfinite(tokens) and 0 <= tokens <= MAX_TOKENS_ASKED):
            raise InvalidRequestError(f"task_tokens[{task!r}] must lie in 0..{MAX_TOKENS_ASKED:g}, not {tokens}")
    return {_parse_task(task): tokens for task, tokens in message.items()}
