"""The real tritonclient, in an environment and a process of its own: it caps protobuf below ours, and its generated
names would collide with ours in one process.

The environment is made once, from the package index, and kept in the user's cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

REQUIREMENT = "tritonclient[grpc]==2.70.0"
INSTALL_SECONDS = 240.0
CLIENT_SECONDS = 90.0
_ROOT = Path(__file__).resolve().parents[2]
_SCRIPT = Path(__file__).with_name("triton_client.py")
_SYSTEM_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def triton_python() -> Path:
    """The Python that has tritonclient. Skips the test if there is no such environment yet and no package index."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emoe"
    kept = cache / f"{REQUIREMENT.replace('[grpc]==', '-')}-py{sys.version_info.major}.{sys.version_info.minor}"
    if not (kept / "bin/python").exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            _install(Path(scratch) / "env")
            with contextlib.suppress(OSError):  # another test run was first
                (Path(scratch) / "env").rename(kept)
    return kept / "bin/python"


@contextlib.asynccontextmanager
async def triton_running(*arguments: str) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """triton_client.py with these arguments: the objects that it prints, as they come."""
    process = await asyncio.create_subprocess_exec(
        str(await asyncio.to_thread(triton_python)), str(_SCRIPT), *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None

    async def printed(stdout: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
        while line := await stdout.readline():
            yield json.loads(line)
        assert await process.wait() == 0, "tritonclient failed; its traceback is above"

    try:
        async with asyncio.timeout(CLIENT_SECONDS):
            yield printed(process.stdout)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def run_triton(address: str, model: str, action: str, **options: Any) -> list[dict[str, Any]]:
    """All that it printed."""
    async with triton_running(address, model, action, json.dumps(options)) as printed:
        return [line async for line in printed]


def _install(folder: Path) -> None:
    python = folder / "bin/python"
    uv = shutil.which("uv") or shutil.which("uv", path=str(_ROOT / ".cache/uv/bin"))
    if uv:
        commands = [
            [uv, "venv", "--quiet", "--python", sys.executable, str(folder)],
            [uv, "pip", "install", "--quiet", "--python", str(python), REQUIREMENT],
        ]
    else:
        commands = [
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", REQUIREMENT],
        ]
    environment = dict(os.environ)
    if _SYSTEM_CERTIFICATES.exists():
        environment.setdefault("UV_SYSTEM_CERTS", "1")  # a network may have a certificate authority of its own
    for command in commands:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
        if done.returncode:
            _give_up(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def _give_up(reason: str) -> None:
    """A skip when the index cannot be reached; a failure when it can."""
    names = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
    index = next((os.environ[name] for name in names if os.environ.get(name)), "https://pypi.org/simple/")
    try:
        urllib.request.urlopen(index, timeout=10).close()
    except urllib.error.HTTPError:
        pass
    except OSError as error:
        pytest.skip(f"no tritonclient: the package index {index} cannot be reached ({error})")
    pytest.fail(f"no tritonclient, though the package index {index} answers; {reason}")


if __name__ == "__main__":  # ahead of tests that run where no package index can be reached
    print(triton_python())
