"""Supervises one stub child until it is signalled, as `emoe up` does. Prints the child's pid once it is ready."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from cli_stubs import accepts, stub_spec

from emoe.cli.signals import run_until_signalled
from emoe.cli.supervisor import Supervisor, SupervisorLimits


async def supervise(folder: Path, fault: str) -> None:
    supervisor = Supervisor(probe=accepts, limits=SupervisorLimits(drain_seconds=60))
    try:
        await supervisor.start(stub_spec(folder, "stub", f"--fault={fault}"))
        print(supervisor.children[0].pid, flush=True)
        await supervisor.watch()
    finally:
        await supervisor.stop()


if __name__ == "__main__":
    asyncio.run(run_until_signalled(supervise(Path(sys.argv[1]), sys.argv[2])))
