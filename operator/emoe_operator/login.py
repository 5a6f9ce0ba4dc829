"""The HTTP session that kopf watches with: the same configuration as all other requests, and each response heard.

kopf asks for one at its start and whenever the API server refuses the credentials. When it gets none, it waits for ever
without a word; `broken` ends the watches instead.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import aiohttp
import kopf
from kubernetes.aio.client import ApiClient

from emoe.core.errors import EmoeError
from emoe_operator.client import FIELD_MANAGER, load_configuration

RETRIES = 3
PAUSE_SECONDS = 0.5
_USER_AGENT = f"{FIELD_MANAGER}-watch"

log = logging.getLogger(__name__)


class Login:
    def __init__(self, response_class: type[aiohttp.ClientResponse]) -> None:
        self._response_class = response_class
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def register(self, registry: kopf.OperatorRegistry) -> None:
        kopf.on.login(registry=registry, id="login")(self._log_in)

    async def broken(self) -> None:
        """Raises what stood in the way, once there can be no session."""
        await self._broken

    async def _log_in(self, **_kwargs: Any) -> kopf.AiohttpSession:
        for _ in range(RETRIES - 1):
            try:
                return await self._open()
            except (EmoeError, OSError) as error:
                log.warning("cannot log in to watch: %s", error)
                await asyncio.sleep(PAUSE_SECONDS)
        try:
            return await self._open()
        except Exception as error:
            if not self._broken.done():
                self._broken.set_exception(error)
            raise

    async def _open(self) -> kopf.AiohttpSession:
        configuration = await load_configuration()
        client = ApiClient(configuration)
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=client.rest_client.ssl_context),
            headers={"User-Agent": _USER_AGENT},
            middlewares=(_authorization(client),),
            response_class=self._response_class,
            proxy=configuration.proxy,
        )
        return kopf.AiohttpSession(aiohttp_session=session, server=configuration.host)


def _authorization(client: ApiClient) -> aiohttp.ClientMiddlewareType:
    """Tokens of service accounts are renewed on disk all the time: each request takes what is there."""

    async def authorize(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        headers: dict[str, str] = {}
        await client.update_params_for_auth(headers, [], ["BearerToken"], "", "GET", None)
        request.headers.update(headers)
        return await handler(request)

    return authorize
