"""Looks at the workers' residents while a trace is replayed, and at its end at the tasks' demand.

The loader's worker list brings the residents, the predictor's answers the demand, as it was learnt by then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable

import grpc.aio

from emoe.cli.failures import CommandError
from emoe.core.experts import FloatGrid
from emoe.eval.cluster_coverage import Look
from emoe.runtime.channels import open_channel
from emoe.runtime.grids import parse_demand, parse_grid, parse_set
from emoe.v1 import loader_pb2, loader_pb2_grpc, predictor_pb2, predictor_pb2_grpc

ASK_SECONDS = 10.0
LOOK_SECONDS = 0.5


@contextlib.asynccontextmanager
async def looking(loader: str, clock: Callable[[], float]) -> AsyncIterator[list[Look]]:
    """Looks, one every half second, until the block ends; the first is there when it begins."""
    async with open_channel(loader) as channel:
        stub = loader_pb2_grpc.LoaderServiceStub(channel)
        latest = _Latest(stub, clock)
        async with asyncio.timeout(ASK_SECONDS):
            await latest.open()
        looks = [latest.look()]
        watching = asyncio.create_task(latest.look_forever(looks))
        try:
            yield looks
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            latest.close()


class _Latest:
    """The loader's list as it came last: messages are many, looks are few."""

    def __init__(self, stub: loader_pb2_grpc.LoaderServiceAsyncStub, clock: Callable[[], float]) -> None:
        self._stub = stub
        self._clock = clock

    async def open(self) -> None:
        self._grid = parse_grid((await self._stub.GetModel(loader_pb2.GetModelRequest(), timeout=ASK_SECONDS)).grid)
        self._messages = self._stub.WatchWorkers(loader_pb2.WatchWorkersRequest())
        self._message = await anext(aiter(self._messages))
        self._reading = asyncio.create_task(self._read())

    def look(self) -> Look:
        resident = {state.worker_id: parse_set(state.resident, self._grid) for state in self._message.workers}
        return Look(at_seconds=self._clock(), resident=resident)

    async def look_forever(self, looks: list[Look]) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            looks.append(self.look())

    async def _read(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for message in self._messages:
                self._message = message

    def close(self) -> None:
        self._reading.cancel()
        self._messages.cancel()


async def ask_demand(loader: str, predictor: str, tasks: Iterable[str]) -> dict[str, FloatGrid]:
    """Task -> demand [L, E] of one of its tokens. CommandError when they do not answer."""
    try:
        async with open_channel(loader) as channel:
            model = await loader_pb2_grpc.LoaderServiceStub(channel).GetModel(
                loader_pb2.GetModelRequest(), timeout=ASK_SECONDS
            )
        grid = parse_grid(model.grid)
        async with open_channel(predictor) as channel:
            stub = predictor_pb2_grpc.PredictorServiceStub(channel)
            return {task: parse_demand((await _predict(stub, model, task)).demand, grid) for task in sorted(set(tasks))}
    except grpc.aio.AioRpcError as error:
        raise CommandError(f"the tasks' demand cannot be asked for: {error.details()}") from error


async def _predict(
    stub: predictor_pb2_grpc.PredictorServiceAsyncStub, model: loader_pb2.GetModelResponse, task: str
) -> predictor_pb2.PredictResponse:
    request = predictor_pb2.PredictRequest(model=model.model, grid=model.grid, task_tokens={task: 1.0})
    return await stub.Predict(request, timeout=ASK_SECONDS)
