"""A ScriptedWorker as a process of its own, for tests that kill it: `python scheduler_worker_process.py SOCKET`."""

from __future__ import annotations

import asyncio
import sys

import grpc
from scheduler_neighbours import ScriptedWorker


async def main(address: str) -> None:
    worker = ScriptedWorker("doomed", stepwise=True)
    worker.address = address
    worker.step()
    server = grpc.aio.server()
    await worker.add_to(server)
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


asyncio.run(main(sys.argv[1]))
