"""A system of `emoe bench refresh`: the services as `emoe up` starts them, except that answers are known beforehand."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from emoe.bench.refresh import Served
from emoe.cli.child import ChildSpec
from emoe.cli.clients import is_serving
from emoe.cli.runfile import locked_state_dir
from emoe.cli.supervisor import Supervisor, SupervisorLimits
from emoe.cli.system import DRAIN_MARGIN_SECONDS, LOADER, WORKER, LocalSystem, SystemOptions, prepare_state_dir

WORKER_MODULE = "emoe.cli.bench_refresh_worker"


class ForcedSystem(LocalSystem):
    def __init__(self, options: SystemOptions, supervisor: Supervisor, answers: Path) -> None:
        super().__init__(options, supervisor)
        self._answers = answers

    def _spec(
        self, service: str, settings: Mapping[str, str], *, name: str | None = None, listen: str = "127.0.0.1:0"
    ) -> ChildSpec:
        spec = super()._spec(service, settings, name=name, listen=listen)
        return force_worker(spec, self._answers) if service == WORKER else spec


def force_worker(spec: ChildSpec, answers: Path) -> ChildSpec:
    """The same worker with the same options, which gives these answers."""
    options = spec.command[spec.command.index(WORKER) + 1 :]
    return dataclasses.replace(spec, command=(spec.command[0], "-m", WORKER_MODULE, str(answers), *options))


@contextlib.asynccontextmanager
async def forced_system(
    variant: str, resident: str, options: SystemOptions, answers: Path, *, keeps_first_plan: bool = False
) -> AsyncIterator[Served]:
    """Up and ready inside. `keeps_first_plan`: its loader has ended, so the residents stay as they are."""
    limits = SupervisorLimits(
        announce_seconds=options.ready_seconds,
        ready_seconds=options.ready_seconds,
        drain_seconds=options.drain_seconds + DRAIN_MARGIN_SECONDS,
    )
    options.state_dir.mkdir(parents=True, exist_ok=True)
    with locked_state_dir(options.state_dir):
        prepare_state_dir(options.state_dir)
        supervisor = Supervisor(probe=is_serving, limits=limits)
        system = ForcedSystem(options, supervisor, answers)
        try:
            await system.start_planning()
            await system.start_serving()
            if keeps_first_plan:
                await _end_loader(supervisor, drain_seconds=limits.drain_seconds)
            yield Served(
                variant=variant,
                resident=resident,
                scheduler=system.scheduler_address,
                worker=system.worker_address,
                pids={child.name: child.pid for child in supervisor.children},
            )
        finally:
            await supervisor.stop()


async def _end_loader(supervisor: Supervisor, *, drain_seconds: float) -> None:
    loader = next(child for child in supervisor.children if child.name == LOADER)
    await loader.end(drain_seconds=drain_seconds)
