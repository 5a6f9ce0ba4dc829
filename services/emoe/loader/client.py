"""The loader's client of the predictor: one question a task, answered in time or not at all.

Stands behind the planning loop, which goes on with the last demand when no answer comes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import grpc

from emoe.core.errors import InvalidRequestError
from emoe.core.experts import ExpertGrid, FloatGrid
from emoe.runtime.channels import open_channel
from emoe.runtime.grids import ModelId, grid_to_proto, model_to_proto, parse_demand
from emoe.runtime.telemetry import outgoing_metadata
from emoe.v1 import predictor_pb2 as pb
from emoe.v1 import predictor_pb2_grpc as rpc

DEADLINE_SECONDS = 2.0

_log = logging.getLogger(__name__)


class PredictorClient:
    """Close it at the end."""

    def __init__(self, address: str, *, model: ModelId, grid: ExpertGrid) -> None:
        self._channel = open_channel(address)
        self._stub: rpc.PredictorServiceAsyncStub = rpc.PredictorServiceStub(self._channel)
        self._model = model_to_proto(model)
        self._grid = grid
        self._grid_message = grid_to_proto(grid)

    async def ask(self, tasks: frozenset[str]) -> Mapping[str, FloatGrid] | None:
        """The demand [L, E] of one token of each task; None when any answer is missing or no demand."""
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                demands = await asyncio.gather(*(self._ask_one(task) for task in sorted(tasks)))
        except TimeoutError:
            _log.debug("the predictor did not answer within %g s", DEADLINE_SECONDS)
            return None
        except grpc.aio.AioRpcError as error:
            _log.debug("the predictor answered %s: %s", error.code().name, error.details())
            return None
        except InvalidRequestError as error:
            _log.warning("the predictor answered with a demand that cannot be: %s", error)
            return None
        return dict(zip(sorted(tasks), demands, strict=True))

    async def close(self) -> None:
        await self._channel.close(None)

    async def _ask_one(self, task: str) -> FloatGrid:
        request = pb.PredictRequest(model=self._model, grid=self._grid_message, task_tokens={task: 1.0})
        answer = await self._stub.Predict(request, timeout=DEADLINE_SECONDS, metadata=outgoing_metadata())
        return parse_demand(answer.demand, self._grid)
