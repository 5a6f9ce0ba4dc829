"""`emoe port-forward` with a kubectl on the PATH that answers by script: a real process, as the real one is."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

WAIT_SECONDS = 30.0
STUB = Path(__file__).with_name("cli_stub_kubectl.py")
READY = {"spec": {"service": {"port": 8500}}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
FORWARDING = "Forwarding from 127.0.0.1:8000 -> 9000\nForwarding from [::1]:8000 -> 9000\n"


def answering(resource: dict[str, Any]) -> dict[str, Any]:
    return {"stdout": json.dumps(resource)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running:
    process: asyncio.subprocess.Process
    log: Path

    def kubectl_log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_SECONDS):
            return (await self.process.stdout.readline()).decode()

    async def end(self) -> tuple[int, str, str]:
        """Status, and what was left on stdout and stderr."""
        async with asyncio.timeout(WAIT_SECONDS):
            stdout, stderr = await self.process.communicate()
        return self.process.returncode or 0, stdout.decode(), stderr.decode()


@pytest.fixture
def kubectl(tmp_path: Path) -> Path:
    """The folder of a kubectl, for the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "kubectl").write_text(f'#!/bin/sh\nexec {sys.executable} {STUB} "$@"\n')
    (folder / "kubectl").chmod(0o755)
    return folder


@contextlib.asynccontextmanager
async def forwarding(folder: Path, *arguments: str, **script: dict[str, Any]) -> AsyncIterator[Running]:
    log = folder / "log"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "emoe.cli.main", "port-forward", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PATH": str(folder), "KUBECTL_SCRIPT": json.dumps(script), "KUBECTL_LOG": str(log)},
    )
    try:
        yield Running(process=process, log=log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def outcome_of(folder: Path, *arguments: str, **script: dict[str, Any]) -> tuple[int, str, str]:
    async with forwarding(folder, *arguments, **script) as running:
        return await running.end()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["int", "term"])
async def test_it_forwards_to_the_service_and_ends_kubectl_with_itself(kubectl: Path, number: signal.Signals) -> None:
    script = {"get": answering(READY), "forward": {"stdout": FORWARDING, "hangs": True}}
    async with forwarding(kubectl, "moed/tiny", "-n", "models", "--port", "8000", **script) as running:
        lines = [await running.line(), await running.line()]
        running.process.send_signal(number)
        status, stdout, stderr = await running.end()
        [asked, forwarded, ended] = running.kubectl_log()
    assert lines == ["moed/tiny answers at 127.0.0.1:8000:\n", '  emoe generate --target 127.0.0.1:8000 "Hello"\n']
    assert (status, stdout, stderr) == (0, "", "")
    where = ["--namespace", "models"]
    assert asked["arguments"] == ["get", "moedeployments.emoe.dev", "tiny", "--output", "json", *where]
    assert forwarded["arguments"] == ["port-forward", "service/tiny", "8000:8500", *where]
    assert ended == {"signal": "SIGTERM"}
    with pytest.raises(ProcessLookupError):
        os.kill(forwarded["pid"], 0)


async def test_the_namespace_is_kubectls_own_unless_given(kubectl: Path) -> None:
    script = {"get": answering({}), "forward": {"status": 1}}
    async with forwarding(kubectl, "tiny", "--port", "0", **script) as running:
        await running.end()
        _, forwarded = running.kubectl_log()
    assert forwarded["arguments"] == ["port-forward", "service/tiny", "0:8000"]


async def test_the_port_that_was_found_is_the_one_to_ask(kubectl: Path) -> None:
    script = {
        "get": answering(READY),
        "forward": {"stdout": "Forwarding from 127.0.0.1:39215 -> 9000\n", "hangs": True},
    }
    async with forwarding(kubectl, "moed/tiny", "--port", "0", **script) as running:
        assert await running.line() == "moed/tiny answers at 127.0.0.1:39215:\n"


async def test_a_resource_that_is_not_ready_says_why_and_is_forwarded_all_the_same(kubectl: Path) -> None:
    condition = {"type": "Ready", "status": "False", "reason": "ModelLoading", "message": "fetched 1 of 9 GiB"}
    script = {
        "get": answering({"status": {"conditions": [condition]}}),
        "forward": {"stdout": FORWARDING, "hangs": True},
    }
    async with forwarding(kubectl, "moed/tiny", **script) as running:
        assert await running.line() == "moed/tiny answers at 127.0.0.1:8000:\n"
        running.process.terminate()
        _, _, stderr = await running.end()
    assert stderr == "emoe: moed/tiny is not Ready (ModelLoading: fetched 1 of 9 GiB)\n"


async def test_when_kubectl_gives_up_its_reason_is_told(kubectl: Path) -> None:
    forward = {"stdout": FORWARDING, "stderr": "error: lost connection to pod\n", "status": 1}
    status, _, stderr = await outcome_of(kubectl, "moed/tiny", get=answering(READY), forward=forward)
    assert status == 1
    assert stderr.endswith(
        "emoe: kubectl port-forward ended with exit status 1: error: lost connection to pod\n",
    )


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            'Error from server (NotFound): moedeployments.emoe.dev "tiny" not found',
            "emoe: there is no MoEDeployment tiny here; see kubectl get moed --all-namespaces",
        ),
        (
            'error: the server doesn\'t have a resource type "moedeployments"',
            "emoe: this cluster has no MoEDeployments: install emoe there",
        ),
        ("Unable to connect to the server: EOF", "emoe: kubectl cannot read moed/tiny: Unable to connect"),
    ],
    ids=["no resource", "no emoe", "no cluster"],
)
async def test_what_kubectl_cannot_find_is_told_in_one_line(kubectl: Path, said: str, told: str) -> None:
    status, stdout, stderr = await outcome_of(kubectl, "moed/tiny", get={"stderr": said + "\n", "status": 1})
    assert (status, stdout, stderr.count("\n")) == (1, "", 1)
    assert stderr.startswith(told)
    assert said in stderr


async def test_without_kubectl_it_says_where_to_get_it(tmp_path: Path) -> None:
    status, _, stderr = await outcome_of(tmp_path, "moed/tiny")
    assert (status, stderr.startswith("emoe: kubectl is not on the PATH; ")) == (1, True)


@pytest.mark.parametrize("resource", ["pod/tiny", "moed/", "moed/a/b", "moed/-x", "--", "moed/A"])
async def test_what_names_no_moedeployment_is_refused(kubectl: Path, resource: str) -> None:
    status, _, stderr = await outcome_of(kubectl, "--", resource)
    assert (status, stderr) == (1, f"emoe: {resource} does not name a MoEDeployment; write moed/NAME\n")


@pytest.mark.parametrize(
    "resource", ["tiny", "moed/tiny", "MoEDeployment/tiny", "moedeployment.emoe.dev/tiny", "moedeployments/tiny"]
)
async def test_every_way_to_write_the_resource_is_understood(kubectl: Path, resource: str) -> None:
    async with forwarding(kubectl, resource, get=answering(READY), forward={"status": 1}) as running:
        await running.end()
        [asked, _] = running.kubectl_log()
    assert asked["arguments"][2] == "tiny"
