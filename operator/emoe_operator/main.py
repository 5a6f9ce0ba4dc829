"""The operator as a process: settings, health port, leadership, work; an end within seconds, whatever hangs.

Exit status 0 after SIGTERM or SIGINT, 1 after anything else: a replica that can no longer work is to be started again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading

from pydantic import ValidationError

from emoe.core.errors import EmoeError
from emoe.runtime.interceptors import root_cause
from emoe.runtime.logs import set_up_logging
from emoe.runtime.telemetry import open_telemetry
from emoe_operator.client import KubeApi, open_client
from emoe_operator.errors import LeaseLostError
from emoe_operator.leader import Leadership
from emoe_operator.metrics import Metrics
from emoe_operator.operation import Operation
from emoe_operator.serving import serving
from emoe_operator.settings import OperatorSettings
from emoe_operator.supervision import first_to_end

log = logging.getLogger(__name__)

STOP_SECONDS = 5.0
LOST_SECONDS = 2.0
"""Less than what is left of a lease that could not be renewed."""


def main() -> int:
    try:
        settings = OperatorSettings()  # type: ignore[call-arg]  # what is required comes from the environment
    except ValidationError as error:
        print(f"emoe-operator: bad settings (EMOE_OPERATOR_...): {error}", file=sys.stderr)
        return 2
    set_up_logging("operator", level=settings.log_level, log_format=settings.log_format)
    # kopf tells of each handler that it called.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    try:
        asyncio.run(serve(settings))
    except Exception as error:
        cause = root_cause(error)
        if isinstance(cause, EmoeError):
            log.error("the operator cannot go on: %s", cause)  # noqa: TRY400 - raised on purpose
        else:
            log.exception("the operator ended by an error")
        return 1
    return 0


async def serve(settings: OperatorSettings) -> None:
    """Until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    _on_signals(stop)
    telemetry, metrics = open_telemetry("operator"), Metrics()
    try:
        async with open_client() as client:
            operation = Operation(KubeApi(client, metrics=metrics), settings, metrics=metrics, tracer=telemetry.tracer)
            leadership = Leadership(client, name=settings.lease_name, namespace=settings.lease_namespace)
            async with serving(
                host=None,
                port=settings.health_port,
                healthy=operation.trouble,
                ready=operation.trouble,
                metrics=metrics,
            ):
                await _lead(leadership, operation, metrics, stop)
    finally:
        await telemetry.close()


async def _lead(leadership: Leadership, operation: Operation, metrics: Metrics, stop: asyncio.Event) -> None:
    async def lead() -> None:
        await leadership.acquire()
        metrics.set_leader(True)
        await first_to_end(_keep(leadership), operation.run())

    try:
        await first_to_end(_wait(stop), lead())
    finally:
        metrics.set_leader(False)
        await leadership.release()


async def _keep(leadership: Leadership) -> None:
    try:
        await leadership.keep()
    except LeaseLostError as error:
        log.error("the operator has to end at once: %s", error)  # noqa: TRY400 - raised on purpose
        _end_within(LOST_SECONDS)
        raise


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


def _on_signals(stop: asyncio.Event) -> None:
    def end() -> None:
        log.info("the operator is shutting down")
        stop.set()
        _end_within(STOP_SECONDS)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)


def _end_within(seconds: float) -> None:
    """Whatever still hangs then is not waited for."""
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    sys.exit(main())
