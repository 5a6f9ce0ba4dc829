"""A gate before a server of models on this machine: pods reach it, what passes is written down, and it can be shut.

Passes HTTP on as it came. Of one file, the weights, an answer can be cut off or held. Does not know what kind of place
lies behind. Listens where pods of our own bed reach it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import PurePosixPath

import aiohttp
from aiohttp import web
from bed_access import NODE_ADDRESS
from yarl import URL

CHUNK_BYTES = 1 << 16
WEIGHTS = "model.safetensors"
OF_ONE_HOP = frozenset({"connection", "keep-alive", "transfer-encoding"})


@dataclasses.dataclass(kw_only=True)
class Read:
    """One GET: a file's last name, from which byte on it was asked for, by whom, and how much was sent."""

    name: str
    offset: int
    authorization: str
    num_bytes: int = 0

    @property
    def position(self) -> int:
        """In the file, of the next byte to send."""
        return self.offset + self.num_bytes


class Gate:
    """`cut_at`: the first answer that comes so far into the weights ends there. `hold_at`: none passes until `open`."""

    def __init__(self, target_port: int, session: aiohttp.ClientSession) -> None:
        self.url = ""
        self.cut_at: int | None = None
        self.hold_at: int | None = None
        self.reads: list[Read] = []
        self._opened = asyncio.Event()
        self._target = f"http://127.0.0.1:{target_port}"
        self._session = session

    def open(self) -> None:
        self._opened.set()

    def offsets(self, name: str = WEIGHTS) -> list[int]:
        return [read.offset for read in self.reads if read.name == name]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        url = URL(self._target + request.raw_path, encoded=True)
        async with self._session.request(request.method, url, headers=request.headers, allow_redirects=False) as answer:
            headers = {name: value for name, value in answer.headers.items() if name.lower() not in OF_ONE_HOP}
            response = web.StreamResponse(status=answer.status, headers=headers)
            await response.prepare(request)
            if request.method == "GET":
                await self._send(request, response, answer)
            return response

    async def _send(self, request: web.Request, response: web.StreamResponse, answer: aiohttp.ClientResponse) -> None:
        read = Read(
            name=PurePosixPath(request.path).name,
            offset=request.http_range.start or 0,
            authorization=request.headers.get("Authorization", ""),
        )
        self.reads.append(read)
        async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
            if read.name == WEIGHTS and not await self._may_pass(read):
                assert request.transport is not None
                request.transport.close()
                return
            await response.write(chunk)
            read.num_bytes += len(chunk)

    async def _may_pass(self, read: Read) -> bool:
        if self.cut_at is not None and read.position >= self.cut_at:
            self.cut_at = None
            return False
        if self.hold_at is not None and read.position >= self.hold_at:
            await self._opened.wait()
        return True


@contextlib.asynccontextmanager
async def gate_before(target_port: int, *, port: int = 0) -> AsyncIterator[Gate]:
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
        gate = Gate(target_port, session)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", gate.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await runner.setup()
        try:
            await web.TCPSite(runner, NODE_ADDRESS, port).start()
            gate.url = f"http://{NODE_ADDRESS}:{runner.addresses[0][1]}"
            yield gate
        finally:
            await runner.cleanup()
