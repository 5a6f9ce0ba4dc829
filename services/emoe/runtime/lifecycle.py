"""A service process from its first port to its last call.

`service_host` gives a service its gRPC server, health on two ports, reflection, supervised background tasks and a
graceful end; `run_process` is what an entry point calls. Neither knows what the service does.

    async with service_host(settings, name="loader") as host:
        host.register("emoe.v1.LoaderService", lambda server: add_LoaderServiceServicer_to_server(servicer, server))
        await host.start()
        host.spawn("refresh", refresh())
        await host.set_ready(True)
        await host.run()
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from emoe.core.errors import EmoeError
from emoe.runtime.channels import MAX_MESSAGE_BYTES, server_options
from emoe.runtime.interceptors import CallInterceptor, StandingCalls, root_cause
from emoe.runtime.logs import set_up_logging
from emoe.runtime.process import announce, die_with_parent
from emoe.runtime.settings import ServiceSettings
from emoe.runtime.telemetry import Telemetry, open_telemetry

log = logging.getLogger(__name__)

DEFAULT_MAX_CALL_SECONDS = 600.0
LIVENESS = "liveness"
"""The name under which health says that the process lives, ready or not: what a restart is decided by."""
_HEALTH = "grpc.health.v1.Health"
_STATUS = health_pb2.HealthCheckResponse


class ServiceHost:
    """Made by `service_host`. `address` and `health_address` are known after `start`."""

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        name: str,
        telemetry: Telemetry,
        group: asyncio.TaskGroup,
        max_receive_bytes: int,
        max_call_seconds: float,
    ) -> None:
        self.name = name
        self.tracer = telemetry.tracer
        self.stopping = asyncio.Event()
        self.address = ""
        self.health_address = ""
        self._settings = settings
        self._group = group
        self._background: set[asyncio.Task[None]] = set()
        self._standing = StandingCalls()
        self._service_names: list[str] = []
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        interceptor = CallInterceptor(tracer=self.tracer, standing=self._standing, max_call_seconds=max_call_seconds)
        self._server = grpc.aio.server(interceptors=[interceptor], options=server_options(max_receive_bytes))
        self._health_server = grpc.aio.server(options=server_options())
        self._running = False
        owner = asyncio.current_task()
        assert owner is not None, "a service is hosted inside a task"
        self._owner = owner
        self._ended_early = False

    def register(self, service: str, add: Callable[[grpc.aio.Server], None], *, standing: Iterable[str] = ()) -> None:
        """Before `start`. `service` is the full name; `standing` its methods whose streams outlive any request: they
        have no time limit and are ended with UNAVAILABLE when the service drains."""
        add(self._server)
        self._service_names.append(service)
        self._standing.methods.update(f"/{service}/{method}" for method in standing)

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` beside the calls until the service ends. If it fails, so does the whole service."""
        task = self._group.create_task(self._supervise(name, work), name=f"{self.name}: {name}")
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def start(self) -> None:
        """Listen and announce. The health port answers since `service_host` was entered."""
        await self.set_ready(False)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection([*self._service_names, _HEALTH, reflection.SERVICE_NAME], self._server)
        self.address = _bind(self._server, self._settings.listen)
        await self._server.start()
        if self._settings.announce_file is not None:
            announce(
                self._settings.announce_file,
                service=self.name,
                address=self.address,
                health_address=self.health_address,
            )
        log.info("%s listens on %s, health on %s", self.name, self.address, self.health_address)

    async def set_ready(self, ready: bool) -> None:
        """What health says on both ports, for "" and for the registered services."""
        status = _STATUS.SERVING if ready and not self.stopping.is_set() else _STATUS.NOT_SERVING
        for service in ("", *self._service_names):
            await self._health.set(service, status)

    def stop(self) -> None:
        """What SIGTERM and SIGINT do: end `run`, or the start-up if it has not come so far."""
        if self.stopping.is_set():
            return
        log.info("%s is shutting down", self.name)
        self.stopping.set()
        if not self._running:
            self._ended_early = True
            self._owner.cancel()

    async def run(self) -> None:
        """Serve until `stop`, then drain: not ready, standing streams ended, other calls let finish, and after them the
        background tasks ended."""
        self._running = True
        await self.stopping.wait()
        await self._health.enter_graceful_shutdown()
        self._standing.end()
        await self._server.stop(self._settings.drain_seconds)
        await self._end_background()

    async def open_health_port(self) -> None:
        await self._health.set("", _STATUS.NOT_SERVING)
        await self._health.set(LIVENESS, _STATUS.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._health_server)
        self.health_address = _bind(self._health_server, self._settings.health_listen)
        await self._health_server.start()

    async def close(self) -> None:
        await self._server.stop(None)
        await self._end_background()
        await self._health_server.stop(None)

    def took_cancellation(self) -> bool:
        """Whether a CancelledError is `stop` ending the start-up; if so it is taken back."""
        if self._ended_early:
            self._owner.uncancel()
        return self._ended_early

    async def _end_background(self) -> None:
        tasks = list(self._background)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _supervise(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            log.exception("background task %r of %s failed; the service ends", name, self.name)
            raise


@contextlib.asynccontextmanager
async def service_host(
    settings: ServiceSettings,
    *,
    name: str,
    max_receive_bytes: int = MAX_MESSAGE_BYTES,
    max_call_seconds: float = DEFAULT_MAX_CALL_SECONDS,
    telemetry: Telemetry | None = None,
) -> AsyncIterator[ServiceHost]:
    """The health port answers inside; leaving ends every call and background task. SIGTERM and SIGINT call `stop`."""
    telemetry = telemetry or open_telemetry(name)
    try:
        async with asyncio.TaskGroup() as group:
            host = ServiceHost(
                settings,
                name=name,
                telemetry=telemetry,
                group=group,
                max_receive_bytes=max_receive_bytes,
                max_call_seconds=max_call_seconds,
            )
            with _signals(host.stop):
                try:
                    await host.open_health_port()
                    yield host
                except asyncio.CancelledError:
                    if not host.took_cancellation():
                        raise
                finally:
                    await host.close()
    finally:
        await telemetry.close()


Settings = TypeVar("Settings", bound=ServiceSettings)


def run_process(serve: Callable[[Settings], Awaitable[None]], settings: Settings, *, name: str) -> int:
    """A service as this whole process: logging, the tie to the parent, the event loop. Returns the exit status."""
    set_up_logging(name, level=settings.log_level, log_format=settings.log_format)
    if settings.exit_with_parent:
        die_with_parent(settings.parent_pid)

    async def main() -> None:
        await serve(settings)

    try:
        asyncio.run(main())
    except Exception as error:
        cause = root_cause(error)
        if isinstance(cause, EmoeError):
            log.error("%s cannot go on: %s", name, cause)  # noqa: TRY400 - raised on purpose: the message says it all
        else:
            log.exception("%s ended by an error", name)
        return 1
    return 0


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Any:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _bind(server: grpc.aio.Server, listen: str) -> str:
    """The address to call, with the port that was found for port 0."""
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {listen}: {error}") from error
    return listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}"
