"""The operator's own HTTP port: /healthz, /readyz and /metrics. Each says in its body why it says no."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

from emoe_operator.metrics import Metrics

Check = Callable[[], str | None]
"""None: well. Else what is wrong."""


@contextlib.asynccontextmanager
async def serving(*, host: str | None, port: int, healthy: Check, ready: Check, metrics: Metrics) -> AsyncIterator[int]:
    """Yields the port, which was found for port 0. Without a host: on every interface."""
    app = web.Application()
    app.router.add_get("/healthz", _answer(healthy))
    app.router.add_get("/readyz", _answer(ready))

    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.page(), headers={"Content-Type": metrics.content_type})

    app.router.add_get("/metrics", show_metrics)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


def _answer(check: Check) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(_: web.Request) -> web.Response:
        wrong = check()
        return web.Response(text=wrong or "ok", status=503 if wrong else 200)

    return handle
