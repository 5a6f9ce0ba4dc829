"""A ScriptedWorker as a process of its own, for tests that kill it: `python scheduler_worker_process.py SOCKET`."""

from __future__ import annotations

import asyncio
import sys

import grpc
from scheduler_neighbours import ScriptedWorker

from emoe.v1.worker_pb2_grpc import add_WorkerServiceServicer_to_server


async def main(address: str) -> None:
    worker = ScriptedWorker("doomed", stepwise=True)
    worker.address = address
    worker.step()
    server = grpc.aio.server()
    add_WorkerServiceServicer_to_server(worker, server)
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


asyncio.run(main(sys.argv[1]))
