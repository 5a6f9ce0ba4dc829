"""`helm test`: makes one MoEDeployment of the model that ships, waits, asks it something, removes it.

Runs in a pod of its own, as an account that may do this and nothing else, and calls the front door as any client would.
Says what the resource's conditions say, as they change. Does not know what the operator makes of a resource.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import aiohttp
import grpc
from kubernetes.aio.client import CustomObjectsApi
from kubernetes.aio.client.exceptions import ApiException

from emoe.api.names import API_VERSION, GROUP, KIND, PLURAL, VERSION
from emoe.core.errors import EmoeError
from emoe.v1 import generation_pb2, scheduler_pb2_grpc
from emoe_operator.client import open_client

log = logging.getLogger("emoe.smoke")

POLL_SECONDS = 1.0
REQUEST_SECONDS = 15.0
GENERATE_SECONDS = 120.0
PROMPT = "What is the capital of France?"
NUM_TOKENS = 16
_NOT_FOUND = 404
_TEMPORARY = frozenset({429, 500, 502, 503, 504})

Body = Mapping[str, Any]


class SmokeError(EmoeError):
    """The installation does not do what it should; the message says what was last seen."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    namespace: str
    name: str
    timeout_seconds: float
    poll_seconds: float = POLL_SECONDS

    @property
    def manifest(self) -> dict[str, Any]:
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": {"model": {"source": "demo://"}, "experts": {"memory": "25%"}},
        }


class Objects(Protocol):
    """The one resource that is tried. Each call has a deadline of its own."""

    async def create(self, manifest: dict[str, Any]) -> None: ...

    async def get(self) -> Body | None: ...

    async def delete(self) -> None:
        """Its children first; it stays visible until they are gone. Nothing to do if it is not there."""


class ApiObjects:
    def __init__(self, api: CustomObjectsApi, trial: Trial) -> None:
        self._api = api
        self._where: dict[str, Any] = {
            "group": GROUP,
            "version": VERSION,
            "plural": PLURAL,
            "namespace": trial.namespace,
        }
        self._name = trial.name

    async def create(self, manifest: dict[str, Any]) -> None:
        await self._api.create_namespaced_custom_object(**self._where, body=manifest, _request_timeout=REQUEST_SECONDS)

    async def get(self) -> Body | None:
        try:
            found: Any = await self._api.get_namespaced_custom_object(
                **self._where, name=self._name, _request_timeout=REQUEST_SECONDS
            )
        except ApiException as error:
            if error.status == _NOT_FOUND:
                return None
            raise
        return cast(Body, found)

    async def delete(self) -> None:
        with _missing_is_fine():
            await self._api.delete_namespaced_custom_object(
                **self._where, name=self._name, propagation_policy="Foreground", _request_timeout=REQUEST_SECONDS
            )


@contextlib.contextmanager
def _missing_is_fine() -> Iterator[None]:
    try:
        yield
    except ApiException as error:
        if error.status != _NOT_FOUND:
            raise


async def try_out(objects: Objects, trial: Trial) -> str:
    """The answer. SmokeError if there is none in time. Removes the resource in either case."""
    await remove(objects, trial)
    log.info("making %s/%s", trial.namespace, trial.name)
    await objects.create(trial.manifest)
    try:
        address = await wait_until_ready(objects, trial)
        answer = await ask(address)
        log.info("%s answered: %s", address, answer)
    finally:
        await remove(objects, trial)
    return answer


async def wait_until_ready(objects: Objects, trial: Trial) -> str:
    """The address that the status names."""
    seen = "no status"

    def is_over(body: Body | None) -> bool:
        nonlocal seen
        if body is not None and (now := describe(body)) and now != seen:
            seen = now
            log.info("%s", seen)
        return body is None or is_ready(body)

    try:
        body = await _poll(objects, trial, is_over)
    except TimeoutError as error:
        raise SmokeError(f"not Ready after {trial.timeout_seconds:.0f} s; last seen: {seen}") from error
    if body is None:
        raise SmokeError(f"{trial.namespace}/{trial.name} was removed by somebody else")
    return str(body["status"]["address"])


async def _poll(objects: Objects, trial: Trial, is_over: Callable[[Body | None], bool]) -> Body | None:
    """TimeoutError after the trial's. The API server may be away meanwhile."""
    async with asyncio.timeout(trial.timeout_seconds):
        while True:
            try:
                if is_over(body := await objects.get()):
                    return body
            except ApiException as error:
                if error.status not in _TEMPORARY:
                    raise
                log.warning("the API server answered %s; asking again", error.status)
            except (aiohttp.ClientError, OSError) as error:
                log.warning("the API server does not answer (%s); asking again", error)
            await asyncio.sleep(trial.poll_seconds)


def is_ready(body: Body) -> bool:
    """Whether Ready is true of the resource as it is now, not of an earlier generation."""
    generation = body["metadata"].get("generation")
    return any(
        condition["type"] == "Ready"
        and condition["status"] == "True"
        and condition.get("observedGeneration") == generation
        for condition in _conditions(body)
    )


def describe(body: Body) -> str:
    """Every condition on a line of its own, with its reason and message."""
    lines = (f"{c['type']}={c['status']} {c.get('reason', '')}: {c.get('message', '')}" for c in _conditions(body))
    return "\n  ".join(lines)


def _conditions(body: Body) -> Sequence[Body]:
    return (body.get("status") or {}).get("conditions") or ()


async def ask(address: str) -> str:
    """One streamed answer from the front door; SmokeError if it ends in an error or without a token."""
    request = generation_pb2.GenerateRequest(
        text=PROMPT, sampling=generation_pb2.Sampling(max_tokens=NUM_TOKENS, temperature=0)
    )
    text, num_tokens = "", 0
    async with grpc.aio.insecure_channel(address) as channel:
        stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        try:
            async for message in stub.Generate(request, timeout=GENERATE_SECONDS, wait_for_ready=True):
                text += message.text
                num_tokens += len(message.token_ids)
        except grpc.aio.AioRpcError as error:
            raise SmokeError(f"Generate at {address} ended {error.code().name}: {error.details()}") from error
    if not num_tokens:
        raise SmokeError(f"Generate at {address} ended well, but without a token")
    return text


async def remove(objects: Objects, trial: Trial) -> None:
    """Returns once it is gone, and its children with it; SmokeError if it is still there after the trial's time-out."""
    await objects.delete()
    try:
        await _poll(objects, trial, lambda body: body is None)
    except TimeoutError as error:
        raise SmokeError(f"{trial.name} was asked to go, and is still there; see what holds its children") from error


async def run(trial: Trial) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with open_client() as client:
        await try_out(ApiObjects(CustomObjectsApi(client), trial), trial)


def parse_arguments(arguments: Sequence[str]) -> Trial:
    parser = argparse.ArgumentParser(prog="python -m emoe_operator.smoke", description=__doc__)
    parser.add_argument("--namespace", required=True, help="one that the operator watches")
    parser.add_argument("--name", required=True, help="of the resource; one that is there already is removed")
    parser.add_argument("--timeout-seconds", type=float, default=240.0, help="for Ready, and for the removal")
    return Trial(**vars(parser.parse_args(arguments)))


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    trial = parse_arguments(sys.argv[1:])
    try:
        asyncio.run(run(trial))
    except SmokeError as error:
        sys.exit(f"failed: {error}")
    except ApiException as error:
        sys.exit(f"failed: the API server answered {error.status} {error.reason}: {error.body}")
    except asyncio.CancelledError:
        sys.exit("ended early; what was made has been asked to go")
    log.info("passed")


if __name__ == "__main__":
    main()
