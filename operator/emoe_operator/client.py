"""The API server as the reconciler sees it: a few REST calls on plain dicts, each with a deadline, counted.

Stands on the Kubernetes client's configuration, credentials and connections; leaves its models aside, because what is
applied and compared are the manifests themselves.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from emoe_operator.errors import NOT_FOUND, ApiError, NoClusterError
from emoe_operator.kinds import EVENT, Kind, kind_of
from emoe_operator.metrics import Metrics
from emoe_operator.observed import Body

log = logging.getLogger(__name__)

FIELD_MANAGER = "emoe-operator"
REQUEST_SECONDS = 15.0
_SERVICE_ACCOUNT = "KUBERNETES_SERVICE_HOST"
_MERGE = "application/merge-patch+json"
_APPLY = "application/apply-patch+yaml"


async def load_configuration() -> Configuration:
    """The pod's service account, or what KUBECONFIG or ~/.kube/config says."""
    configuration, file = Configuration(), os.environ.get("KUBECONFIG")
    try:
        if os.environ.get(_SERVICE_ACCOUNT) and not file:
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            await config.load_kube_config(file, client_configuration=configuration)  # type: ignore[no-untyped-call]
    except config.ConfigException as error:
        raise NoClusterError(f"no cluster to work on ({error}); run in a pod, or set KUBECONFIG") from error
    return configuration


@contextlib.asynccontextmanager
async def open_client() -> AsyncIterator[ApiClient]:
    async with ApiClient(await load_configuration()) as client:
        client.user_agent = FIELD_MANAGER
        yield client


class KubeApi:
    """Raises ApiError, and nothing else, for whatever goes wrong."""

    def __init__(self, client: ApiClient, *, metrics: Metrics) -> None:
        self._client = client
        self._metrics = metrics

    async def get(self, kind: Kind, namespace: str, name: str) -> Body | None:
        try:
            return await self._call("GET", kind, kind.path(namespace, name))
        except ApiError as error:
            if error.status == NOT_FOUND:
                return None
            raise

    async def list(self, kind: Kind, *, namespace: str | None, selector: str = "") -> tuple[list[Body], int]:
        """The objects, without their kind, and the version of the list; from the API server's cache, not from etcd."""
        query = {"resourceVersion": "0", **({"labelSelector": selector} if selector else {})}
        answer = await self._call("GET", kind, kind.path(namespace), query=query)
        return list(answer.get("items") or ()), int(answer["metadata"]["resourceVersion"])

    async def apply(self, manifest: Body) -> Body:
        """Server-side apply: makes the object, or changes what we own of it."""
        kind, meta = kind_of(manifest["kind"]), manifest["metadata"]
        return await self._apply(kind, kind.path(meta["namespace"], meta["name"]), manifest)

    async def replace_ports(self, manifest: Body) -> None:
        """Of a Service, all of them: server-side apply merges ports by number, so that one whose number somebody
        changed stands in the way of ours by its name."""
        kind, meta = kind_of(manifest["kind"]), manifest["metadata"]
        patch = {"spec": {"ports": manifest["spec"]["ports"]}}
        path = kind.path(meta["namespace"], meta["name"])
        await self._call("PATCH", kind, path, query={"fieldManager": FIELD_MANAGER}, body=patch, content_type=_MERGE)

    async def scale_to_zero(self, kind: Kind, namespace: str, name: str) -> Body:
        """Whatever else stands in it is left."""
        query, patch = {"fieldManager": FIELD_MANAGER}, {"spec": {"replicas": 0}}
        return await self._call("PATCH", kind, kind.path(namespace, name), query=query, body=patch, content_type=_MERGE)

    async def apply_status(self, kind: Kind, body: Body, status: Body) -> Body:
        """`body` is the object that it is said of; a later version of it, or a successor, is refused with a conflict.

        (A uid alone would not do: the status subresource does not look at it.)"""
        meta = {name: body["metadata"][name] for name in ("name", "namespace", "uid", "resourceVersion")}
        patch = {"apiVersion": kind.api_version, "kind": kind.name, "metadata": meta, "status": status}
        return await self._apply(kind, kind.path(meta["namespace"], meta["name"], "status"), patch)

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str) -> None:
        """Of this very object alone; that it is gone already is fine."""
        options = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            await self._call("DELETE", kind, kind.path(namespace, name), body=options)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise

    async def create_event(self, namespace: str, event: Body) -> None:
        await self._call("POST", EVENT, EVENT.path(namespace), body=event)

    async def _apply(self, kind: Kind, path: str, manifest: Body) -> Body:
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return await self._call("PATCH", kind, path, query=query, body=manifest, content_type=_APPLY)

    async def _call(
        self,
        verb: str,
        kind: Kind,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        what, code = f"{verb} {path}", 0
        try:
            code, answer = await self._request(verb, path, query or {}, body, content_type)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            message = f"the API server does not answer ({str(error) or type(error).__name__})"
            raise ApiError(what, status=0, reason="Unreachable", message=message) from error
        finally:
            self._metrics.count_request(verb=verb, resource=kind.plural, code=code)
        if not 200 <= code < 300:
            raise ApiError.parse(what, status=code, answer=answer)
        return answer

    async def _request(
        self, verb: str, path: str, query: Mapping[str, str], body: Body | None, content_type: str
    ) -> tuple[int, dict[str, Any]]:
        method, url, headers, content, _ = await self._client.param_serialize(
            verb,
            path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        response = await self._client.call_api(method, url, headers, content, _request_timeout=timeout)
        text = await response.read()  # type: ignore[no-untyped-call]
        return int(response.status), _parse(text)


def _parse(text: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(text)
    except ValueError:
        return {"message": text[:200].decode(errors="replace")}
    return answer if isinstance(answer, dict) else {}
