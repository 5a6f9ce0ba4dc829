"""The operator as the processes that run in a cluster: one leads, another takes over, each ends in time."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator

import pytest
from operator_at_work import make_resource
from support.apiserver import ApiServer
from support.kube_objects import DEPLOYMENTS, LEASES, MOED, KubeObjects, until

from emoe_operator.leader import LEASE_SECONDS

LEASE = "emoe-operator"
TAKEOVER_SECONDS = 20.0


class OperatorProcess:
    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self._port = port

    async def answer(self, path: str) -> tuple[int, str]:
        """Status and body; status 0 while nobody listens."""
        return await asyncio.to_thread(self._answer, path)

    def _answer(self, path: str) -> tuple[int, str]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)) as connection:
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                return response.status, response.read().decode()
            except (OSError, http.client.HTTPException):
                return 0, ""

    async def leads(self) -> bool:
        return "emoe_operator_leader 1.0" in (await self.answer("/metrics"))[1]

    async def is_up(self) -> bool:
        return (await self.answer("/readyz"))[0] == 200

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        async with asyncio.timeout(10):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def operator_process(kube: KubeObjects, **variables: str) -> AsyncIterator[OperatorProcess]:
    port = _free_port()
    given = {
        "CONTROL_IMAGE": "emoe/control:1",
        "WORKER_IMAGE": "emoe/worker:1",
        "NAMESPACES": json.dumps([kube.namespace]),
        "LEASE_NAME": LEASE,
        "LEASE_NAMESPACE": kube.namespace,
        "HEALTH_PORT": str(port),
        **variables,
    }
    environment = {**os.environ, **{f"EMOE_OPERATOR_{name}": value for name, value in given.items()}}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "emoe_operator.main"), env=environment, stderr=asyncio.subprocess.PIPE
    )
    reader = asyncio.create_task(_drain(process))
    try:
        yield OperatorProcess(process, port)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await reader


async def _drain(process: asyncio.subprocess.Process) -> None:
    assert process.stderr is not None
    while line := await process.stderr.readline():
        sys.stderr.write(line.decode())


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def has_looked(operator: OperatorProcess) -> bool:
    return 'emoe_operator_reconciles_total{result="ok"}' in (await operator.answer("/metrics"))[1]


async def test_it_works_ends_in_time_and_gives_the_lease_back(kube: KubeObjects) -> None:
    await make_resource(kube)
    async with operator_process(kube) as operator:
        await kube.until(MOED, "tiny", lambda body: "status" in body)
        assert (await operator.answer("/healthz"))[0] == 200
        # A look is counted after the status that it wrote can be read.
        await until(lambda: has_looked(operator))
        began = time.monotonic()
        assert await operator.end() == 0
        assert time.monotonic() - began < 5
    lease = await kube.get(LEASES, LEASE)
    assert lease is not None
    assert not lease["spec"].get("holderIdentity")


async def test_a_standby_is_ready_and_takes_over_at_once_from_one_that_ends(kube: KubeObjects) -> None:
    async with operator_process(kube) as first:
        await until(first.leads)
        async with operator_process(kube) as second:
            await until(second.is_up)
            assert not await second.leads()
            await first.end()
            await until(second.leads, seconds=5)
            await make_resource(kube)
            await kube.until(DEPLOYMENTS, "tiny-scheduler", bool)


@pytest.mark.timeout(90)
async def test_a_standby_takes_over_from_one_that_was_killed(kube: KubeObjects) -> None:
    await make_resource(kube)
    async with operator_process(kube) as first:
        await until(first.leads)
        async with operator_process(kube) as second:
            await until(second.is_up)
            await first.end(signal.SIGKILL)
            await until(second.leads, seconds=TAKEOVER_SECONDS)
            await make_resource(kube, "other")
            await kube.until(DEPLOYMENTS, "other-scheduler", bool)


async def test_one_whose_lease_was_taken_ends_with_an_error(kube: KubeObjects) -> None:
    async with operator_process(kube) as operator:
        await until(operator.leads)
        await kube.merge(LEASES, LEASE, {"spec": {"holderIdentity": "somebody-else"}})
        async with asyncio.timeout(10):
            assert await operator.process.wait() == 1
    lease = await kube.get(LEASES, LEASE)
    assert lease is not None
    assert lease["spec"]["holderIdentity"] == "somebody-else"


@pytest.mark.timeout(90)
async def test_one_that_cannot_renew_ends_before_another_may_lead(kube: KubeObjects, apiserver: ApiServer) -> None:
    async with operator_process(kube) as operator:
        await until(operator.leads)
        with apiserver.hanging():
            async with asyncio.timeout(LEASE_SECONDS):
                assert await operator.process.wait() == 1


async def test_it_survives_a_restart_of_the_api_server(kube: KubeObjects, apiserver: ApiServer) -> None:
    async with operator_process(kube) as operator:
        await make_resource(kube, "before")
        await kube.until(DEPLOYMENTS, "before-scheduler", bool)
        apiserver.stop_apiserver()
        await asyncio.to_thread(apiserver.start_apiserver)
        await make_resource(kube, "after")
        await kube.until(DEPLOYMENTS, "after-scheduler", bool)
        assert operator.process.returncode is None


async def test_bad_settings_are_refused_by_name(kube: KubeObjects, capfd: pytest.CaptureFixture[str]) -> None:
    async with operator_process(kube, HEALTH_PORT="no port") as operator:
        async with asyncio.timeout(20):
            assert await operator.process.wait() == 2
    assert "health_port" in capfd.readouterr().err
