"""`emoe up`: the four services until the user ends them, with their figures shown."""

from __future__ import annotations

import asyncio
import time

from emoe.cli.clients import LoaderWatch, ask_queue
from emoe.cli.display import Display, ReadySystem
from emoe.cli.meter import Meter
from emoe.cli.system import LocalSystem, SystemOptions, local_system
from emoe.runtime.channels import open_channel

VIEW_SECONDS = 1.0


async def up(options: SystemOptions, display: Display) -> None:
    """Runs until cancelled; SupervisionError when a service cannot be started or kept alive."""
    started = time.monotonic()
    serving = asyncio.Event()
    with display:
        async with local_system(options, on_event=display.on_child) as system:
            try:
                await system.start_planning()
                async with asyncio.TaskGroup() as group:
                    group.create_task(show_figures(system, serving, display))
                    await system.start_serving()
                    serving.set()
                    display.on_ready(_ready(options, system, time.monotonic() - started))
                    await system.watch()
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None


async def show_figures(system: LocalSystem, serving: asyncio.Event, display: Display) -> None:
    """A view each second, also while the worker loads. Runs until cancelled."""
    watch = LoaderWatch(system.loader_address)
    meter = Meter()
    async with asyncio.TaskGroup() as group:
        group.create_task(watch.follow())
        while not serving.is_set():
            display.on_view(meter.look(num_experts=watch.num_experts, queue=None, workers=watch.workers))
            await asyncio.sleep(VIEW_SECONDS)
        async with open_channel(system.scheduler_address) as channel:
            while True:
                queue = await ask_queue(channel)
                display.on_view(meter.look(num_experts=watch.num_experts, queue=queue, workers=watch.workers))
                await asyncio.sleep(VIEW_SECONDS)


def _ready(options: SystemOptions, system: LocalSystem, startup_seconds: float) -> ReadySystem:
    return ReadySystem(
        scheduler=system.scheduler_address,
        loader=system.loader_address,
        model=str(options.model),
        startup_seconds=startup_seconds,
    )
