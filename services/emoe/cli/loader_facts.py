"""The loader's list of workers as it is now, for a command that wants to know them once."""

from __future__ import annotations

import grpc
import grpc.aio

from emoe.cli.failures import RemoteError
from emoe.runtime.channels import open_channel
from emoe.v1 import loader_pb2, loader_pb2_grpc

LISTED_SECONDS = 10.0


async def ask_workers(address: str) -> tuple[loader_pb2.WorkerState, ...]:
    """RemoteError when the loader does not answer."""
    async with open_channel(address) as channel:
        call = loader_pb2_grpc.LoaderServiceStub(channel).WatchWorkers(
            loader_pb2.WatchWorkersRequest(), timeout=LISTED_SECONDS
        )
        try:
            async for response in call:
                return tuple(response.workers)
        except grpc.aio.AioRpcError as error:
            raise RemoteError(
                f"the loader at {address} does not list its workers: {error.details()}", code=error.code().name
            ) from error
        finally:
            call.cancel()
    return ()
