"""`emoe generate --target`: a scheduler anywhere, and what is said when there is none to be had there."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from cli_scheduler_stand_in import SchedulerStandIn, scheduling
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from emoe.runtime.lifecycle import service_host
from emoe.runtime.settings import ServiceSettings
from emoe.v1 import scheduler_pb2_grpc

WAIT_SECONDS = 30.0


async def emoe_generate(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Status, stdout and stderr."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EMOE_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "emoe.cli.main", "generate", "Hello", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**kept, "EMOE_STATE_DIR": "/nonexistent", **environment},
    )
    async with asyncio.timeout(WAIT_SECONDS):
        stdout, stderr = await process.communicate()
    return process.returncode or 0, stdout.decode(), stderr.decode()


@contextlib.contextmanager
def unused_port():
    """Bound and not listened to: nothing can answer there, and nobody else can take it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextlib.asynccontextmanager
async def speaking(reply: bytes | None) -> AsyncIterator[str]:
    """A server of another kind, that says `reply` to whatever comes, or nothing at all."""
    connections: set[asyncio.StreamWriter] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(writer)
        await reader.read(1)
        if reply is not None:
            writer.write(reply)
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        for writer in connections:
            writer.close()
        server.close()


async def test_a_named_scheduler_answers() -> None:
    async with scheduling(SchedulerStandIn()) as address:
        by_option = await emoe_generate("--target", address)
        by_variable = await emoe_generate(EMOE_TARGET=address)
    assert [outcome[:2] for outcome in (by_option, by_variable)] == [(0, "Good day.\n")] * 2


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1:80", "127.0.0.1", ":8000", "::1:8000", "host:http", "host:0", "host:65536", "host:80/path"],
)
async def test_what_is_no_address_is_refused_at_once(target: str) -> None:
    status, _, stderr = await emoe_generate("--target", target)
    assert status == 1
    assert stderr.startswith(f"emoe: --target {target} ")
    assert "port" in stderr


async def test_an_address_where_nothing_listens_is_called_unreachable() -> None:
    with unused_port() as port:
        status, stdout, stderr = await emoe_generate("--target", f"127.0.0.1:{port}")
    assert (status, stdout) == (1, "")
    assert stderr.startswith(f"emoe: nothing that speaks gRPC can be reached at 127.0.0.1:{port}: ")
    assert "Connection refused" in stderr


async def test_json_says_unreachable_with_a_code() -> None:
    with unused_port() as port:
        status, stdout, _ = await emoe_generate("--target", f"127.0.0.1:{port}", "--json")
    assert (status, json.loads(stdout)["error"]["code"]) == (1, "UNAVAILABLE")


async def test_a_server_of_another_kind_is_told_apart() -> None:
    async with speaking(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n") as address:
        status, _, stderr = await emoe_generate("--target", address)
    assert (status, stderr.startswith(f"emoe: nothing that speaks gRPC can be reached at {address}")) == (1, True)


async def test_a_server_that_says_nothing_is_given_up() -> None:
    async with speaking(None) as address:
        status, _, stderr = await emoe_generate("--target", address, "--timeout", "2")
    assert status == 1
    assert address in stderr


async def test_another_grpc_service_is_told_apart() -> None:
    async with service_host(ServiceSettings(), name="other") as host:
        await host.start()
        await host.set_ready(True)
        status, _, stderr = await emoe_generate("--target", host.address)
    assert (status, stderr) == (
        1,
        "emoe: what answers there is no emoe scheduler: it has no emoe.v1.SchedulerService\n",
    )


async def test_a_scheduler_that_is_not_ready_is_not_waited_for() -> None:
    scheduler = SchedulerStandIn()
    async with service_host(ServiceSettings(), name="scheduler") as host:
        host.register(
            "emoe.v1.SchedulerService",
            lambda server: scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(scheduler, server),
        )
        await host.start()
        status, _, stderr = await emoe_generate("--target", host.address)
    assert status == 1
    assert stderr.startswith(f"emoe: the scheduler at {host.address} is not ready: ")
    assert scheduler.requests == []


async def test_a_gateway_that_passes_no_health_calls_on_is_asked_all_the_same() -> None:
    server = grpc.aio.server()
    scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(SchedulerStandIn(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    status, stdout, _ = await emoe_generate("--target", f"127.0.0.1:{port}")
    await server.stop(None)
    assert (status, stdout) == (0, "Good day.\n")


async def test_tls_trusts_the_authorities_that_it_is_given(tmp_path: Path) -> None:
    key, certificate = make_certificate()
    (tmp_path / "ca.pem").write_bytes(certificate)
    server = grpc.aio.server()
    scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(SchedulerStandIn(), server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
    await server.start()
    options = ("--target", f"127.0.0.1:{port}", "--tls")
    trusted = await emoe_generate(*options, GRPC_DEFAULT_SSL_ROOTS_FILE_PATH=str(tmp_path / "ca.pem"))
    unknown = await emoe_generate(*options)
    await server.stop(None)
    assert trusted[:2] == (0, "Good day.\n")
    assert unknown[0] == 1
    assert "can be reached" in unknown[2]


def make_certificate() -> tuple[bytes, bytes]:
    """Key and certificate of 127.0.0.1, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "emoe test")])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder(subject_name=name, issuer_name=name, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
    )
    certificate = builder.sign(key, hashes.SHA256())
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private, certificate.public_bytes(encoding)
