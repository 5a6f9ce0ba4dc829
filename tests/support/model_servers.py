"""Places that models are fetched from, as small real servers: a hub, a plain web server, and a line that breaks.

The hub speaks what huggingface_hub needs: model info with commit, sizes and hashes, and ranged reads under `resolve`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

COMMIT = "5" * 40
LFS_SUFFIXES = (".safetensors", ".bin")
SMALL_BYTES = 128 * 1024
"""A connection that has carried less has brought answers, not weights."""


class Hub:
    """One model. `token`: what a reader must send. `served`: name -> other bytes than those that are listed."""

    def __init__(self, folder: Path, repo: str = "tiny/moe", *, token: str | None = None) -> None:
        self.folder = folder
        self.repo = repo
        self.token = token
        self.served: dict[str, bytes] = {}
        self.reads: list[tuple[str, str]] = []
        """Name and Range header of every read."""
        self.revisions: list[str] = []
        """Those that were asked about."""

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/models/{org}/{name}", self._info)
        app.router.add_get("/api/models/{org}/{name}/revision/{revision}", self._info)
        app.router.add_get("/{org}/{name}/resolve/{revision}/{file}", self._read)
        return app

    async def _info(self, request: web.Request) -> web.Response:
        self.revisions.append(request.match_info.get("revision", ""))
        if refusal := self._refusal(request):
            return refusal
        siblings = [self._sibling(path) for path in sorted(self.folder.iterdir()) if path.is_file()]
        return web.json_response({"id": self.repo, "sha": COMMIT, "siblings": siblings})

    async def _read(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["file"]
        self.reads.append((name, request.headers.get("Range", "")))
        if refusal := self._refusal(request):
            return refusal
        data = self.served.get(name) or await asyncio.to_thread((self.folder / name).read_bytes)
        return ranged(request, data, etag=hashlib.sha256(data).hexdigest())

    def _refusal(self, request: web.Request) -> web.Response | None:
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401, headers={"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        if f"{request.match_info['org']}/{request.match_info['name']}" != self.repo:
            return web.Response(status=404, headers={"X-Error-Code": "RepoNotFound"})
        if request.match_info.get("revision", "main") not in ("main", COMMIT):
            return web.Response(status=404, headers={"X-Error-Code": "RevisionNotFound"})
        return None

    def _sibling(self, path: Path) -> dict[str, object]:
        data = path.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        entry: dict[str, object] = {"rfilename": path.name, "size": len(data), "blobId": git}
        if path.name.endswith(LFS_SUFFIXES):
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry


def ranged(request: web.Request, data: bytes, *, etag: str) -> web.Response:
    begin = request.http_range.start or 0
    headers = {"ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
    if not begin:
        return web.Response(body=data, headers=headers)
    if begin >= len(data):
        return web.Response(status=416, headers=headers | {"Content-Range": f"bytes */{len(data)}"})
    headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
    return web.Response(status=206, body=data[begin:], headers=headers)


def file_server(folder: Path) -> web.Application:
    """A web server like any other: HEAD, Range, ETag."""
    app = web.Application()
    app.router.add_static("/models/tiny", folder)
    return app


@contextlib.asynccontextmanager
async def running(app: web.Application, *, port: int = 0) -> AsyncIterator[int]:
    """The port it listens on."""
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


class Line:
    """A TCP line to a server. Once armed, it breaks or falls silent after so many bytes from there, once."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.num_breaks = 0
        self.is_silent = asyncio.Event()
        self._target_port = target_port
        self._connections: set[asyncio.Task[None]] = set()
        self._left: int | None = None
        self._break = True
        self._num_silences = 0

    def break_after(self, num_bytes: int) -> None:
        self._left, self._break = num_bytes, True

    def fall_silent_after(self, num_bytes: int) -> None:
        """Nothing more comes over any connection that is in the midst of a file then; others work."""
        self._left, self._break = num_bytes, False

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Line]:
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        there, to_there = await asyncio.open_connection("127.0.0.1", self._target_port)
        upward = asyncio.create_task(self._copy(reader, to_there))
        try:
            await self._copy_down(there, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            upward.cancel()
            for end in (writer, to_there):
                end.transport.abort()
            await asyncio.gather(upward, return_exceptions=True)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    async def _copy_down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        num_silences, num_bytes = self._num_silences, 0
        while data := await reader.read(65536):
            if num_silences < self._num_silences and num_bytes >= SMALL_BYTES:
                await asyncio.Event().wait()
            num_bytes += len(data)
            if self._left is not None:
                if len(data) >= self._left:
                    await self._fail(data[: self._left], writer)
                    return
                self._left -= len(data)
            writer.write(data)
            await writer.drain()

    async def _fail(self, last: bytes, writer: asyncio.StreamWriter) -> None:
        self._left = None
        self.num_breaks += 1
        writer.write(last)
        await writer.drain()
        if not self._break:
            self._num_silences += 1
            self.is_silent.set()
            await asyncio.Event().wait()
        # A moment for what was written; an abort at once would throw it away.
        await asyncio.sleep(0.05)
