"""A web server with checkpoints, as http:// sources have them: slow if asked to be, and cut off once if asked to be.

Serves a folder by its published names, with ranges. Listens where pods of our own bed reach it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web
from bed_access import NODE_ADDRESS

CHUNK_BYTES = 1 << 16


@dataclasses.dataclass
class ModelServer:
    """`url` is the address of the folder. `cut_at`: the first answer of the weights ends after so many bytes."""

    folder: Path
    url: str = ""
    cut_at: int | None = None
    is_open: bool = True
    asked: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    """(name, offset) of each GET."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = self.folder / request.match_info["name"]
        if not self.is_open:
            return web.Response(status=503)
        if not path.is_file():
            return web.Response(status=404)
        data = path.read_bytes()
        offset = request.http_range.start or 0
        headers = {"Content-Length": str(len(data) - offset), "ETag": f'"{len(data)}"'}
        if offset:
            headers["Content-Range"] = f"bytes {offset}-{len(data) - 1}/{len(data)}"
        response = web.StreamResponse(status=206 if offset else 200, headers=headers)
        await response.prepare(request)
        if request.method == "GET":
            self.asked.append((path.name, offset))
            await self._send(request, response, data[offset:])
        return response

    async def _send(self, request: web.Request, response: web.StreamResponse, data: bytes) -> None:
        for begin in range(0, len(data), CHUNK_BYTES):
            if self.cut_at is not None and begin >= self.cut_at:
                self.cut_at = None
                assert request.transport is not None
                request.transport.abort()
                return
            await response.write(data[begin : begin + CHUNK_BYTES])


@contextlib.asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[ModelServer]:
    server = ModelServer(folder=folder)
    app = web.Application()
    app.router.add_route("*", "/model/{name}", server.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, NODE_ADDRESS, 0)
        await site.start()
        server.url = f"http://{NODE_ADDRESS}:{runner.addresses[0][1]}/model"
        yield server
    finally:
        await runner.cleanup()
