"""The loader's client of the predictor: one question a task, answered in time or not at all.

Stands behind the planning loop, which goes on with the last demand when no answer comes. Before the first question, and
whenever the predictor says that it has none, it is given the model's profile; if that fails, it is asked all the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

import grpc

from emoe.core.errors import InvalidRequestError
from emoe.core.experts import ExpertGrid, FloatGrid
from emoe.loader.profile import OpenProfile
from emoe.runtime.channels import open_channel
from emoe.runtime.grids import ModelId, grid_to_proto, model_to_proto, parse_demand
from emoe.runtime.parts import parts
from emoe.runtime.telemetry import outgoing_metadata
from emoe.v1 import predictor_pb2 as pb
from emoe.v1 import predictor_pb2_grpc as rpc

DEADLINE_SECONDS = 2.0
PROFILE_DEADLINE_SECONDS = 5.0

_log = logging.getLogger(__name__)


class PredictorClient:
    """Close it at the end."""

    def __init__(self, address: str, *, model: ModelId, grid: ExpertGrid, profile: OpenProfile | None = None) -> None:
        self._channel = open_channel(address)
        self._stub: rpc.PredictorServiceAsyncStub = rpc.PredictorServiceStub(self._channel)
        self._model = model_to_proto(model)
        self._grid = grid
        self._grid_message = grid_to_proto(grid)
        self._profile = profile
        self._profile_given = False
        self._last_refusal = ""

    async def ask(self, tasks: frozenset[str]) -> Mapping[str, FloatGrid] | None:
        """The demand [L, E] of one token of each task; None when any answer is missing or no demand."""
        if not self._profile_given:
            await self._give_profile()
        answers = await self._ask_all(sorted(tasks))
        if self._profile_given and not all(answer.has_profile for answer in answers or ()):
            # It began anew since it was given the profile.
            await self._give_profile()
            answers = await self._ask_all(sorted(tasks))
        return None if answers is None else self._parse(sorted(tasks), answers)

    async def close(self) -> None:
        await self._channel.close(None)

    async def _ask_all(self, tasks: Sequence[str]) -> list[pb.PredictResponse] | None:
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                return await asyncio.gather(*(self._ask_one(task) for task in tasks))
        except TimeoutError:
            _log.debug("the predictor did not answer within %g s", DEADLINE_SECONDS)
        except grpc.aio.AioRpcError as error:
            _log.debug("the predictor answered %s: %s", error.code().name, error.details())
        return None

    async def _ask_one(self, task: str) -> pb.PredictResponse:
        request = pb.PredictRequest(model=self._model, grid=self._grid_message, task_tokens={task: 1.0})
        return await self._stub.Predict(request, timeout=DEADLINE_SECONDS, metadata=outgoing_metadata())

    def _parse(self, tasks: Iterable[str], answers: Iterable[pb.PredictResponse]) -> Mapping[str, FloatGrid] | None:
        try:
            demands = [parse_demand(answer.demand, self._grid) for answer in answers]
        except InvalidRequestError as error:
            _log.warning("the predictor answered with a demand that cannot be: %s", error)
            return None
        return dict(zip(tasks, demands, strict=True))

    async def _give_profile(self) -> None:
        """What keeps the predictor from taking it is told once, not at every question."""
        self._profile_given = False
        if self._profile is None:
            return
        try:
            await self._stub.LoadProfile(
                self._messages(self._profile), timeout=PROFILE_DEADLINE_SECONDS, metadata=outgoing_metadata()
            )
        except grpc.aio.AioRpcError as error:
            self._tell(error)
            return
        _log.info("the predictor begins from the model's profile of %d tasks", self._profile.num_tasks)
        self._profile_given, self._last_refusal = True, ""

    def _messages(self, profile: OpenProfile) -> Iterator[pb.LoadProfileRequest]:
        yield pb.LoadProfileRequest(model=self._model, grid=self._grid_message)
        for part in parts(profile.profile):
            yield pb.LoadProfileRequest(profile=part)
        for part in parts(profile.sequence):
            yield pb.LoadProfileRequest(learned=part)

    def _tell(self, error: grpc.aio.AioRpcError) -> None:
        refusal = f"{error.code().name}: {error.details()}"
        is_away = error.code() is grpc.StatusCode.UNAVAILABLE
        is_news = not is_away and refusal != self._last_refusal
        _log.log(
            logging.WARNING if is_news else logging.DEBUG,
            "the predictor did not take the model's profile and goes on without (%s)",
            refusal,
        )
        self._last_refusal = refusal
