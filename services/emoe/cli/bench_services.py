"""The process side of `emoe bench services`: starts the four, and hands over."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from emoe.bench.machine import describe_machine
from emoe.bench.rows import Report
from emoe.bench.services import ServiceSettings, bench_services
from emoe.cli.display import PlainDisplay
from emoe.cli.failures import CommandError
from emoe.cli.signals import run_until_signalled
from emoe.cli.system import SystemOptions, local_system


def run_services(model: Path, settings: ServiceSettings, *, say: Callable[[str], None]) -> Report:
    """CommandError if it is interrupted, or if the services do not come up; the message has a log's last lines."""
    report: Report | None = None

    async def work(folder: Path) -> None:
        nonlocal report
        report = await measure(model, settings, folder, say=say)

    with tempfile.TemporaryDirectory(prefix="emoe-bench-") as folder:
        asyncio.run(run_until_signalled(work(Path(folder))))
    if report is None:
        raise CommandError("the benchmark was stopped before its end")
    return report


async def measure(model: Path, settings: ServiceSettings, folder: Path, *, say: Callable[[str], None]) -> Report:
    """`folder` is empty and ours."""
    worker = settings.engine_options(threads=describe_machine(threads=settings.threads).threads)
    options = SystemOptions(
        model=model,
        state_dir=folder,
        listen="127.0.0.1:0",
        worker={name.replace("_", "-"): value for name, value in worker.items()},
    )
    async with local_system(options, on_event=PlainDisplay(sys.stderr).on_child) as system:
        await system.start_planning()
        await system.start_serving()
        addresses = {"worker": system.worker_address, "scheduler": system.scheduler_address}
        return await bench_services(model, settings, addresses, say=say)
