"""A worker with its engine: answers calls, follows the loader's plans, tells its neighbours how it is."""

from __future__ import annotations

import asyncio
import logging

from emoe.core.budget import slot_bytes
from emoe.runtime.grids import ModelId
from emoe.runtime.lifecycle import ServiceHost
from emoe.store.store import ExpertStore
from emoe.v1 import worker_pb2_grpc
from emoe.worker.build import EngineParts
from emoe.worker.foresight import open_forecast
from emoe.worker.plans import PlanSubscription
from emoe.worker.prompts import PromptEncoder
from emoe.worker.reporting import RoutingReporter
from emoe.worker.runner import EngineRunner
from emoe.worker.running_demand import RunningForecast
from emoe.worker.service import WorkerService
from emoe.worker.settings import WorkerSettings
from emoe.worker.state import WorkerIdentity

log = logging.getLogger(__name__)

SERVICE = "emoe.v1.WorkerService"
FIRST_PLAN_SECONDS = 5.0
POLL_SECONDS = 0.02


async def serve_model(
    settings: WorkerSettings, host: ServiceHost, store: ExpertStore, parts: EngineParts, encoder: PromptEncoder
) -> None:
    loop = asyncio.get_running_loop()
    readiness: asyncio.Queue[bool] = asyncio.Queue()
    runner = EngineRunner(
        parts, loop=loop, on_ready=readiness.put_nowait, stream_interval_seconds=settings.stream_interval_seconds
    )
    # The address is known only after `start`, which needs the service registered: so it is filled in afterwards.
    service = WorkerService(runner=runner, encoder=encoder, eos_token_ids=parts.eos_token_ids)
    host.register(SERVICE, lambda server: worker_pb2_grpc.add_WorkerServiceServicer_to_server(service, server))
    await host.start()
    model = ModelId(digest=store.digest, family=store.family)
    address = settings.advertise or host.address
    service.identity = WorkerIdentity(
        worker_id=settings.worker_id or address,
        address=address,
        model=model,
        miss_policy=settings.miss_policy,
        max_concurrency=settings.max_concurrency,
        max_waiting=settings.max_waiting,
        max_context=parts.options.max_context,
        slot_bytes=slot_bytes(store.grid),
    )
    runner.start()
    forecast = await asyncio.to_thread(open_forecast, store) if parts.options.own_routing_tokens else None
    _spawn_neighbours(settings, host, store, runner, service, model, forecast)

    async def follow_readiness() -> None:
        while True:
            service.ready = await readiness.get()
            await host.set_ready(service.ready)

    async def watch_engine() -> None:
        await runner.finished.wait()
        if runner.failure is not None:
            raise RuntimeError("the engine ended") from runner.failure

    host.spawn("readiness", follow_readiness())
    host.spawn("engine", watch_engine())
    try:
        if settings.loader is not None and settings.miss_policy == "reroute":
            await _first_plan(runner)
        readiness.put_nowait(True)
        await host.run()
    finally:
        await runner.stop()
        parts.residency.close()


async def _first_plan(runner: EngineRunner) -> None:
    """Until the loader's first plan is applied: what a worker starts from suits no task. Bounded: it may be away."""
    for _ in range(round(FIRST_PLAN_SECONDS / POLL_SECONDS)):
        if await runner.ask(lambda engine: engine.residency.applied_epoch):
            return
        await asyncio.sleep(POLL_SECONDS)
    log.warning("no plan came within %.0f s; serving from the experts at hand", FIRST_PLAN_SECONDS)


def _spawn_neighbours(
    settings: WorkerSettings,
    host: ServiceHost,
    store: ExpertStore,
    runner: EngineRunner,
    service: WorkerService,
    model: ModelId,
    forecast: RunningForecast | None,
) -> None:
    if settings.loader is not None:
        subscription = PlanSubscription(
            loader=settings.loader,
            model=model,
            grid=store.grid,
            runner=runner,
            heartbeat=service.state,
            heartbeat_seconds=settings.heartbeat_seconds,
            forecast=forecast,
        )
        host.spawn("plans", subscription.run())
    if settings.predictor is not None:
        reporter = RoutingReporter(
            predictor=settings.predictor,
            model=model,
            grid=store.grid,
            runner=runner,
            worker_id=service.identity.worker_id,
            report_seconds=settings.report_seconds,
        )
        host.spawn("routing", reporter.run())
