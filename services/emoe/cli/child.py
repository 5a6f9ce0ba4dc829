"""One service as a child process: spawn, learn its ports, read its log, end it.

The supervisor decides when; this module knows one process at a time and nothing of the other services.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from emoe.cli.announcement import Announcement, read_announcement

POLL_SECONDS = 0.05
NUM_TAIL_LINES = 15
MAX_TAIL_BYTES = 16 * 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChildSpec:
    """`command` gets the options that every service has appended: addresses, announce file, exit with parent."""

    name: str
    command: tuple[str, ...]
    log_path: Path
    announce_path: Path
    listen: str = "127.0.0.1:0"
    environment: Mapping[str, str] | None = None
    """The child's whole environment; None: the parent's."""


class Child:
    """A process of `spec`; `spawn` again after it died brings it back on the addresses that it had."""

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.announcement: Announcement | None = None
        self._process: asyncio.subprocess.Process | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not spawned"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def spawn(self) -> None:
        """Starts the process. Its own session, so that a terminal's Ctrl-C reaches the parent alone."""
        assert not self.is_running, f"{self.name} runs already"
        self.spec.announce_path.unlink(missing_ok=True)
        with self.spec.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._arguments(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                env=self.spec.environment,
            )

    async def wait_announced(self) -> Announcement | None:
        """The child's addresses; None if it ended before it had any. The caller sets the deadline."""
        while self.is_running:
            announcement = read_announcement(self.spec.announce_path, pid=self.pid)
            if announcement is not None:
                self.announcement = announcement
                return announcement
            await asyncio.sleep(POLL_SECONDS)
        return None

    async def wait(self) -> int:
        """The exit status once it has ended."""
        assert self._process is not None, f"{self.name} was not spawned"
        return await self._process.wait()

    async def end(self, *, drain_seconds: float) -> int:
        """TERM, then KILL once `drain_seconds` are over. Safe on a child that has ended."""
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(drain_seconds):
                return await self.wait()
        except TimeoutError:
            return await self.kill()

    async def kill(self) -> int:
        self._signal(signal.SIGKILL)
        return await self.wait()

    def tail(self) -> str:
        """The last lines of its log."""
        return read_tail(self.spec.log_path)

    def _arguments(self) -> list[str]:
        bound = self.announcement
        return [
            *self.spec.command,
            "--listen",
            bound.address if bound else self.spec.listen,
            "--health-listen",
            bound.health_address if bound else "127.0.0.1:0",
            "--announce-file",
            str(self.spec.announce_path),
            "--exit-with-parent",
            "--parent-pid",
            str(os.getpid()),
        ]

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, f"{self.name} was not spawned"
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


def read_tail(path: Path) -> str:
    """The last lines of a text file; empty if there is none."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - MAX_TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-NUM_TAIL_LINES:])
