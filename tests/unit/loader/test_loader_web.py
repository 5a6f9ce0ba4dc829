"""Bytes from a web server, over a connection that breaks."""

from __future__ import annotations

import asyncio

import pytest

from emoe.loader.fetch.failures import FetchError, Reason
from emoe.loader.fetch.web import open_session, read_from

NUM_SENT = 3 << 19
MAX_LOST = 1 << 19


class BreakingServer:
    """Sends the beginning of a file, all at once, and ends the connection. `num_read`: by its only reader."""

    def __init__(self) -> None:
        self.num_read = 0
        self.has_sent = asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (2 * NUM_SENT))
        writer.write(bytes(NUM_SENT))
        writer.close()
        await writer.wait_closed()
        self.has_sent.set()

    async def read_all(self, url: str) -> None:
        """FetchError in the end. Each chunk is looked at only once all that can come unread has come."""
        async with open_session() as session, read_from(session, url, offset=0) as incoming:
            async for chunk in incoming.chunks:
                self.num_read += len(chunk)
                await self.has_sent.wait()
                for _ in range(100):
                    await asyncio.sleep(0)


async def test_little_of_what_had_arrived_is_lost_with_a_connection_that_breaks() -> None:
    """Though it broke while the reader was busy."""
    there = BreakingServer()
    async with await asyncio.start_server(there.answer, "127.0.0.1", 0) as server, asyncio.timeout(10):
        with pytest.raises(FetchError) as raised:
            await there.read_all(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/weights")

    assert raised.value.reason is Reason.UNREACHABLE
    assert there.num_read >= NUM_SENT - MAX_LOST
