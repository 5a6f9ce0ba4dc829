"""`emoe port-forward moed/NAME`: kubectl's port-forward to a MoEDeployment's front door, from what the resource says.

It runs kubectl, so cluster, credentials and context are those of the shell. One child at a time, that ends with us.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from typing import Any

from emoe.api.names import GROUP, NAME_PATTERN, PLURAL, SHORT_NAME, SINGULAR
from emoe.cli.failures import CommandError

KINDS = (SHORT_NAME, SINGULAR, PLURAL)
DEFAULT_SERVICE_PORT = 8000
LOOK_SECONDS = 30.0
END_SECONDS = 5.0
_FORWARDING = re.compile(rb"Forwarding from (\S+:\d+) -> \d+")


async def port_forward(resource: str, *, namespace: str | None, port: int) -> None:
    """Until cancelled. CommandError when it cannot begin, and when kubectl gives up."""
    name = parse_resource(resource)
    kubectl = find_kubectl()
    where = ("--namespace", namespace) if namespace else ()
    found = await _get(kubectl, name, where)
    for line in describe_trouble(name, found):
        print(f"emoe: {line}", file=sys.stderr)
    service_port = found.get("spec", {}).get("service", {}).get("port", DEFAULT_SERVICE_PORT)
    async with _child(kubectl, "port-forward", f"service/{name}", f"{port}:{service_port}", *where) as process:
        await _relay(process, name)


def parse_resource(text: str) -> str:
    """The name in `moed/NAME`, as `kubectl get -o name` prints it too, or in NAME alone."""
    kind, slash, name = text.rpartition("/")
    known = not slash or kind.lower() in (*KINDS, *(f"{one}.{GROUP}" for one in KINDS))
    if not known or not re.fullmatch(NAME_PATTERN, name):
        raise CommandError(f"{text} does not name a MoEDeployment; write moed/NAME")
    return name


def find_kubectl() -> str:
    found = shutil.which("kubectl")
    if found is None:
        raise CommandError("kubectl is not on the PATH; install it: https://kubernetes.io/docs/tasks/tools/")
    return found


def describe_trouble(name: str, resource: Mapping[str, Any]) -> list[str]:
    """What to know before asking a resource that is not Ready: its condition's reason and message."""
    conditions = {condition.get("type"): condition for condition in resource.get("status", {}).get("conditions", ())}
    ready = conditions.get("Ready", {})
    if ready.get("status") == "True":
        return []
    said = ": ".join(ready[key] for key in ("reason", "message") if ready.get(key))
    return [f"moed/{name} is not Ready ({said or 'it has no status yet'})"]


async def _get(kubectl: str, name: str, where: tuple[str, ...]) -> dict[str, Any]:
    """The resource. CommandError with kubectl's reason."""
    arguments = ("get", f"{PLURAL}.{GROUP}", name, "--output", "json", *where)
    async with _child(kubectl, *arguments) as process:
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                stdout, stderr = await process.communicate()
        except TimeoutError:
            raise CommandError(f"kubectl got no answer from the cluster within {LOOK_SECONDS:g} s") from None
    if process.returncode:
        raise CommandError(explain_refusal(name, stderr.decode(errors="replace").strip()))
    try:
        return dict(json.loads(stdout))
    except ValueError as error:
        raise CommandError(f"kubectl get moed {name} printed no JSON object: {error}") from error


def explain_refusal(name: str, said: str) -> str:
    if "have a resource type" in said:
        return f"this cluster has no MoEDeployments: install emoe there, or choose another context ({said})"
    if "NotFound" in said:
        return f"there is no MoEDeployment {name} here; see kubectl get moed --all-namespaces ({said})"
    return f"kubectl cannot read moed/{name}: {said}"


async def _relay(process: Process, name: str) -> None:
    """What kubectl prints, and how to ask once it listens. CommandError when it ends."""
    assert process.stdout is not None
    assert process.stderr is not None
    async with asyncio.TaskGroup() as group:
        errors = group.create_task(_pass_on(process.stderr))
        told = False
        async for line in process.stdout:
            forwarding = _FORWARDING.match(line)
            if forwarding and not told:
                told = True
                address = forwarding[1].decode()
                print(f'moed/{name} answers at {address}:\n  emoe generate --target {address} "Hello"', flush=True)
    status = await process.wait()
    reason = errors.result() or "it gave no reason"
    raise CommandError(f"kubectl port-forward ended with exit status {status}: {reason}")


async def _pass_on(stream: asyncio.StreamReader) -> str:
    """Line by line, for kubectl tells of each broken connection here; the last line."""
    last = b""
    async for last in stream:
        print(last.decode(errors="replace"), end="", file=sys.stderr, flush=True)
    return last.decode(errors="replace").strip()


@contextlib.asynccontextmanager
async def _child(*command: str) -> AsyncIterator[Process]:
    """In a session of its own, so that Ctrl-C reaches it through us, once. Leaving ends it: TERM, then KILL."""
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(END_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
