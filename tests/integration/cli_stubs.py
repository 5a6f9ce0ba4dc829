"""Stub children for the supervisor's tests."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from emoe.cli.child import ChildSpec

STUB_SERVICE = Path(__file__).with_name("cli_stub_service.py")
STUB_PARENT = Path(__file__).with_name("cli_stub_parent.py")


def stub_spec(folder: Path, name: str, *options: str) -> ChildSpec:
    return ChildSpec(
        name=name,
        command=(sys.executable, str(STUB_SERVICE), *options),
        log_path=folder / f"{name}.log",
        announce_path=folder / f"{name}.json",
    )


async def accepts(address: str) -> bool:
    """A readiness probe: whether the port takes connections."""
    host, _, port = address.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except ConnectionRefusedError:
        return False
    writer.close()
    await writer.wait_closed()
    return True
