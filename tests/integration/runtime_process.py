"""A small service of bytes on the runtime, as a process: `python runtime_process.py SETTINGS_JSON BEHAVIOUR`."""

from __future__ import annotations

import asyncio
import sys

import grpc

from emoe.runtime.lifecycle import run_process, service_host
from emoe.runtime.settings import ServiceSettings

SERVICE = "emoe.test.Bytes"


async def serve(settings: ServiceSettings) -> None:
    async def echo(request: bytes, context: object) -> bytes:
        return request

    async def fail() -> None:
        raise RuntimeError("the background is broken")

    async with service_host(settings, name="bytes") as host:
        handlers = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
        host.register(
            SERVICE,
            lambda server: server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),)),
        )
        if behaviour == "slow start":
            await asyncio.Event().wait()
        await host.start()
        if behaviour == "failing background":
            host.spawn("broken", fail())
        await host.set_ready(True)
        await host.run()


async def have_child() -> int:
    """Start a service that is to die with this process, and wait to be killed."""
    arguments = (sys.executable, __file__, sys.argv[1], "serve")
    child = await asyncio.create_subprocess_exec(*arguments)
    return await child.wait()


if __name__ == "__main__":
    behaviour = sys.argv[2]
    if behaviour == "parent":
        sys.exit(asyncio.run(have_child()))
    sys.exit(run_process(serve, ServiceSettings.model_validate_json(sys.argv[1]), name="bytes"))
