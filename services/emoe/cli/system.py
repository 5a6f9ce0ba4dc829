"""The services as child processes of this one: which command starts each, in what order, with which addresses.

`emoe up` and `emoe demo` stand on this. Settings that the caller leaves out are the services' own defaults.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from emoe.cli.child import ChildSpec
from emoe.cli.clients import is_serving
from emoe.cli.failures import CommandError
from emoe.cli.runfile import locked_state_dir, remove_up_file, write_up_file
from emoe.cli.supervisor import ChildEvent, Supervisor, SupervisorLimits
from emoe.runtime.cpus import usable_cpus

PREDICTOR, LOADER, WORKER, SCHEDULER = "predictor", "loader", "worker", "scheduler"
SERVICES = (PREDICTOR, LOADER, WORKER, SCHEDULER)
# A child drains for 10 seconds unless told otherwise; then it has this long to end before it is killed.
DRAIN_MARGIN_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SystemOptions:
    """`loader`, `worker`, `scheduler`: further options of `emoe serve`, by name without the dashes; a flag has an
    empty value."""

    model: Path
    state_dir: Path
    workers: int = 1
    """Each with slots of its own. They share the processors: several get a part of them each, one thread at least."""
    listen: str = "127.0.0.1:50051"
    ready_seconds: float = 300.0
    drain_seconds: float = 10.0
    loader: Mapping[str, str] = dataclasses.field(default_factory=dict)
    worker: Mapping[str, str] = dataclasses.field(default_factory=dict)
    scheduler: Mapping[str, str] = dataclasses.field(default_factory=dict)


class LocalSystem:
    """The services, started in two steps so that residency can be watched while the workers load."""

    def __init__(self, options: SystemOptions, supervisor: Supervisor) -> None:
        self._options = options
        self._supervisor = supervisor

    @property
    def scheduler_address(self) -> str:
        return self._supervisor.announcement(SCHEDULER).address

    @property
    def worker_address(self) -> str:
        """Of the first."""
        return self._supervisor.announcement(worker_names(self._options.workers)[0]).address

    @property
    def worker_ids(self) -> tuple[str, ...]:
        return tuple(f"worker-{number}" for number in range(self._options.workers))

    @property
    def loader_address(self) -> str:
        return self._supervisor.announcement(LOADER).address

    @property
    def predictor_address(self) -> str:
        return self._supervisor.announcement(PREDICTOR).address

    async def start_planning(self) -> None:
        """Predictor, then loader."""
        predictor = {"state-dir": str(self._options.state_dir / "predictor")}
        await self._supervisor.start(self._spec(PREDICTOR, predictor))
        settings = {"model": str(self._options.model), "predictor": self.predictor_address}
        await self._supervisor.start(self._spec(LOADER, settings | dict(self._options.loader)))

    async def start_serving(self) -> None:
        """Workers and scheduler side by side. Once all are ready, `emoe generate` finds them."""
        scheduler = {"loader": self.loader_address, "state-dir": str(self._options.state_dir / "scheduler")}
        await self._supervisor.start(
            *self._worker_specs(),
            self._spec(SCHEDULER, scheduler | dict(self._options.scheduler), listen=self._options.listen),
        )
        write_up_file(
            self._options.state_dir,
            model=str(self._options.model),
            scheduler=self.scheduler_address,
            loader=self.loader_address,
        )

    async def watch(self) -> None:
        """Brings back what dies, until cancelled."""
        await self._supervisor.watch()

    def _worker_specs(self) -> list[ChildSpec]:
        shared = {
            "model": str(self._options.model),
            "loader": self.loader_address,
            "predictor": self.predictor_address,
            **_threads_each(self._options.workers),
        }
        names = worker_names(self._options.workers)
        return [
            self._spec(WORKER, shared | {"worker-id": worker_id} | dict(self._options.worker), name=name)
            for worker_id, name in zip(self.worker_ids, names, strict=True)
        ]

    def _spec(
        self, service: str, settings: Mapping[str, str], *, name: str | None = None, listen: str = "127.0.0.1:0"
    ) -> ChildSpec:
        state_dir, drain_seconds = self._options.state_dir, self._options.drain_seconds
        name = name or service
        return ChildSpec(
            name=name,
            command=(
                *(sys.executable, "-m", "emoe.cli.main", "serve", service),
                f"--drain-seconds={drain_seconds:g}",
                *(f"--{option}={value}" if value else f"--{option}" for option, value in settings.items()),
            ),
            log_path=log_path(state_dir, name),
            announce_path=state_dir / "announce" / f"{name}.json",
            listen=listen,
        )


@contextlib.asynccontextmanager
async def local_system(options: SystemOptions, *, on_event: Callable[[ChildEvent], None]) -> AsyncIterator[LocalSystem]:
    """Nothing runs yet; what is started inside ends with the block, whatever ends it."""
    require_worker_extra()
    limits = SupervisorLimits(
        announce_seconds=options.ready_seconds,
        ready_seconds=options.ready_seconds,
        drain_seconds=options.drain_seconds + DRAIN_MARGIN_SECONDS,
    )
    with locked_state_dir(options.state_dir):
        prepare_state_dir(options.state_dir)
        supervisor = Supervisor(probe=is_serving, limits=limits, on_event=on_event)
        try:
            yield LocalSystem(options, supervisor)
        finally:
            remove_up_file(options.state_dir)
            await supervisor.stop()


def log_path(state_dir: Path, name: str) -> Path:
    return state_dir / "logs" / f"{name}.log"


def worker_names(num_workers: int) -> tuple[str, ...]:
    """What each worker's process is called in logs and messages."""
    return (WORKER,) if num_workers == 1 else tuple(f"{WORKER}-{number}" for number in range(num_workers))


def prepare_state_dir(state_dir: Path) -> None:
    """Fresh logs; those of the run before stay beside them as `.1`."""
    for folder in ("logs", "announce", "predictor"):
        (state_dir / folder).mkdir(exist_ok=True)
    for log in (state_dir / "logs").glob("*.log"):
        log.replace(log.with_suffix(".log.1"))


def _threads_each(num_workers: int) -> Mapping[str, str]:
    """A worker alone takes what it may; several that each did so would be in each other's way."""
    return {} if num_workers == 1 else {"threads": str(max(1, usable_cpus() // num_workers))}


def require_worker_extra() -> None:
    """Told here, at once: the worker's own message would come after the others have started."""
    if importlib.util.find_spec("torch") is None:
        raise CommandError("the worker needs torch, which is not installed: pip install 'emoe[all]'")
