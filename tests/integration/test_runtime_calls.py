"""What stands round every call: error mapping, time limits, standing streams, with real servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import pytest

from emoe.core.errors import BudgetError, PlanError
from emoe.runtime.channels import open_channel, remaining_seconds
from emoe.runtime.lifecycle import service_host
from emoe.runtime.reconnect import keep_connected
from emoe.runtime.settings import ServiceSettings

SERVICE = "emoe.test.Bytes"


class Bytes:
    """Every shape of call; what a request says decides how it goes."""

    async def unary(self, request: bytes, context) -> bytes:
        return await self._obey(request, context)

    async def generated(self, request: bytes, context) -> AsyncIterator[bytes]:
        yield b"first"
        yield await self._obey(request, context)

    async def written(self, request: bytes, context) -> None:
        await context.write(b"first")
        await context.write(await self._obey(request, context))

    async def collected(self, requests: AsyncIterator[bytes], context) -> bytes:
        return b"".join([request async for request in requests])

    async def mirrored(self, requests: AsyncIterator[bytes], context) -> AsyncIterator[bytes]:
        async for request in requests:
            yield await self._obey(request, context)

    async def _obey(self, request: bytes, context) -> bytes:
        match request:
            case b"plan":
                raise PlanError("epoch 7 is not routable")
            case b"group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._fail())
            case b"bug":
                raise ZeroDivisionError("secret")
            case b"hang":
                await asyncio.Event().wait()
            case b"deadline":
                return f"{remaining_seconds(context, 5):.0f}".encode()
        return request

    async def _fail(self) -> None:
        raise BudgetError("3 slots are too few")

    def add_to(self, server: grpc.aio.Server) -> None:
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Generated": grpc.unary_stream_rpc_method_handler(self.generated),
            "Written": grpc.unary_stream_rpc_method_handler(self.written),
            "Standing": grpc.unary_stream_rpc_method_handler(self.generated),
            "Collected": grpc.stream_unary_rpc_method_handler(self.collected),
            "Mirrored": grpc.stream_stream_rpc_method_handler(self.mirrored),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


@contextlib.asynccontextmanager
async def hosted(**options):
    """A host that serves Bytes, and a channel to it."""
    async with service_host(ServiceSettings(drain_seconds=0), name="bytes", **options) as host:
        host.register(SERVICE, Bytes().add_to, standing=["Standing"])
        await host.start()
        async with open_channel(host.address) as channel:
            yield host, channel


async def failure(awaitable) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await awaitable
    return failed.value


async def test_every_shape_of_call_answers() -> None:
    async with hosted() as (_, channel):
        one, two = iter([b"a", b"b"]), iter([b"a", b"b"])
        assert await channel.unary_unary(f"/{SERVICE}/Unary")(b"a") == b"a"
        assert [m async for m in channel.unary_stream(f"/{SERVICE}/Generated")(b"a")] == [b"first", b"a"]
        assert [m async for m in channel.unary_stream(f"/{SERVICE}/Written")(b"a")] == [b"first", b"a"]
        assert await channel.stream_unary(f"/{SERVICE}/Collected")(one) == b"ab"
        assert [m async for m in channel.stream_stream(f"/{SERVICE}/Mirrored")(two)] == [b"a", b"b"]


@pytest.mark.parametrize(
    ("request_bytes", "code", "text"),
    [
        pytest.param(b"plan", grpc.StatusCode.FAILED_PRECONDITION, "epoch 7 is not routable", id="raised on purpose"),
        pytest.param(b"group", grpc.StatusCode.FAILED_PRECONDITION, "3 slots are too few", id="inside a task group"),
        pytest.param(b"bug", grpc.StatusCode.INTERNAL, "failed unexpectedly", id="not on purpose"),
    ],
)
async def test_errors_become_status_in_unary_and_streaming_calls(request_bytes, code, text, caplog) -> None:
    async with hosted() as (_, channel):
        error = await failure(channel.unary_unary(f"/{SERVICE}/Unary")(request_bytes))
        for method in ("Generated", "Written"):
            words = aiter(channel.unary_stream(f"/{SERVICE}/{method}")(request_bytes))
            assert await anext(words) == b"first"
            assert (await failure(anext(words))).code() is code

    assert error.code() is code
    assert text in error.details()
    assert "secret" not in error.details()
    assert ("secret" in caplog.text) == (request_bytes == b"bug")


async def test_call_without_a_deadline_ends_at_the_services_limit() -> None:
    async with hosted(max_call_seconds=0.05) as (_, channel):
        error = await failure(channel.unary_unary(f"/{SERVICE}/Unary")(b"hang"))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "0.05 s" in error.details()


async def test_remaining_seconds_is_the_deadline_or_the_cap() -> None:
    async with hosted() as (_, channel):
        call = channel.unary_unary(f"/{SERVICE}/Unary")
        assert await call(b"deadline") == b"5"
        assert await call(b"deadline", timeout=100) == b"5"
        assert await call(b"deadline", timeout=3) == b"3"


async def test_draining_ends_standing_streams_at_once_and_waits_for_the_others() -> None:
    settings = ServiceSettings(drain_seconds=30)
    async with service_host(settings, name="bytes") as host:
        host.register(SERVICE, Bytes().add_to, standing=["Standing"])
        await host.start()
        async with open_channel(host.address) as channel:
            standing = aiter(channel.unary_stream(f"/{SERVICE}/Standing")(b"hang"))
            assert await anext(standing) == b"first"
            mirror = channel.stream_stream(f"/{SERVICE}/Mirrored")()
            await mirror.write(b"before")
            assert await mirror.read() == b"before"
            running = asyncio.create_task(host.run())
            host.stop()

            error = await failure(anext(standing))
            await mirror.write(b"after")

            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert "shutting down" in error.details()
            assert await mirror.read() == b"after"
            assert not running.done()
            await mirror.done_writing()
            await running


async def test_message_over_the_limit_is_refused() -> None:
    async with hosted(max_receive_bytes=1000) as (_, channel):
        error = await failure(channel.unary_unary(f"/{SERVICE}/Unary")(b"x" * 1001))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_standing_client_stream_is_opened_again_after_it_broke() -> None:
    async with hosted() as (_, channel):
        opened = asyncio.Semaphore(0)

        async def stream() -> None:
            opened.release()
            [word async for word in channel.unary_stream(f"/{SERVICE}/Standing")(b"plan")]

        keeping = asyncio.create_task(keep_connected("a test", stream))
        async with asyncio.timeout(10):
            await opened.acquire()
            await opened.acquire()
        keeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await keeping
