"""A test's own hands on the API server: plain dicts in and out, and waiting for what should become true."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

Body = dict[str, Any]
WAIT_SECONDS = 30.0
POLL_SECONDS = 0.05

MOED = "/apis/emoe.dev/v1alpha1/namespaces/{}/moedeployments"
DEPLOYMENTS = "/apis/apps/v1/namespaces/{}/deployments"
SERVICES = "/api/v1/namespaces/{}/services"
ACCOUNTS = "/api/v1/namespaces/{}/serviceaccounts"
CLAIMS = "/api/v1/namespaces/{}/persistentvolumeclaims"
POLICIES = "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies"
EVENTS = "/apis/events.k8s.io/v1/namespaces/{}/events"
PODS = "/api/v1/namespaces/{}/pods"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/{}/leases"
NAMESPACES = "/api/v1/namespaces"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


class KubeObjects:
    """Each path is of a collection; `namespace` is filled in."""

    def __init__(self, client: ApiClient, namespace: str) -> None:
        self._client = client
        self.namespace = namespace

    async def create(self, path: str, body: Body) -> Body:
        return await self._ask("POST", self._at(path), body)

    async def get(self, path: str, name: str) -> Body | None:
        return await self._ask("GET", self._at(path, name), missing_ok=True)

    async def list(self, path: str) -> list[Body]:
        return list((await self._ask("GET", self._at(path)))["items"])

    async def names(self, path: str) -> set[str]:
        return {item["metadata"]["name"] for item in await self.list(path)}

    async def merge(self, path: str, name: str, patch: Body, *, subresource: str = "") -> Body:
        return await self._ask(
            "PATCH", self._at(path, name, subresource), patch, content_type="application/merge-patch+json"
        )

    async def strategic(self, path: str, name: str, patch: Body) -> Body:
        """As `kubectl edit` and `kubectl set` send it."""
        return await self._ask(
            "PATCH", self._at(path, name), patch, content_type="application/strategic-merge-patch+json"
        )

    async def delete(self, path: str, name: str) -> None:
        await self._ask("DELETE", self._at(path, name), missing_ok=True)

    async def until(self, path: str, name: str, holds: Callable[[Body], Any], *, seconds: float = WAIT_SECONDS) -> Body:
        """The object once it stands and `holds` is true of it."""
        last: Body | None = None

        async def look() -> Body | None:
            nonlocal last
            last = await self.get(path, name)
            return last if last is not None and holds(last) else None

        try:
            return await until(look, seconds=seconds)
        except TimeoutError:
            raise AssertionError(f"{name} did not come to be so within {seconds} s; it is {json.dumps(last)}") from None

    def _at(self, path: str, *parts: str) -> str:
        return "/".join([path.format(self.namespace), *filter(None, parts)])

    async def _ask(
        self,
        verb: str,
        path: str,
        body: Body | None = None,
        *,
        content_type: str = "application/json",
        missing_ok: bool = False,
    ) -> Any:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        url = self._client.configuration.host + path
        response = await self._client.rest_client.request(verb, url, headers=headers, body=body)
        answer = json.loads(await response.read())
        if response.status == 404 and missing_ok:
            return None
        if response.status >= 300:
            raise AssertionError(f"{verb} {path}: {answer.get('message', answer)}")
        return answer


async def until(look: Callable[[], Awaitable[Any]], *, seconds: float = WAIT_SECONDS) -> Any:
    """What `look` gives, once it gives something."""
    async with asyncio.timeout(seconds):
        while not (found := await look()):  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(POLL_SECONDS)
        return found


@contextlib.asynccontextmanager
async def open_kube_client(kubeconfig: Path) -> AsyncIterator[ApiClient]:
    configuration = Configuration()
    await config.load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)
    async with ApiClient(configuration) as client:
        yield client


def conditions(body: Body) -> dict[str, Body]:
    return {one["type"]: one for one in (body.get("status") or {}).get("conditions") or ()}
