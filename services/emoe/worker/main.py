"""The worker process: opens the checkpoint, builds the engine, serves, and keeps its neighbours told."""

from __future__ import annotations

import asyncio
import logging

import torch

from emoe.core.budget import slot_bytes
from emoe.core.errors import UnsupportedModelError
from emoe.runtime.grids import ModelId
from emoe.runtime.lifecycle import ServiceHost, service_host
from emoe.store.store import ExpertStore
from emoe.v1 import worker_pb2_grpc
from emoe.worker.build import EngineOptions, EngineParts, bootstrap_plan, build_parts
from emoe.worker.device import pick_device, usable_cpus
from emoe.worker.loader_source import LoaderSource
from emoe.worker.plans import PlanSubscription
from emoe.worker.prompts import PromptEncoder
from emoe.worker.reporting import RoutingReporter
from emoe.worker.runner import EngineRunner
from emoe.worker.service import WorkerService
from emoe.worker.settings import WorkerSettings
from emoe.worker.sources import ExpertSource, LocalSource
from emoe.worker.state import WorkerIdentity
from emoe.worker.warmup import warm_up

log = logging.getLogger(__name__)

SERVICE = "emoe.v1.WorkerService"
MAX_CALL_SECONDS = 3600.0
"""No shorter than the longest deadline that a scheduler passes on."""


async def serve(settings: WorkerSettings) -> None:
    async with service_host(
        settings, name="worker", max_receive_bytes=settings.max_request_bytes, max_call_seconds=MAX_CALL_SECONDS
    ) as host:
        store = await asyncio.to_thread(ExpertStore.open, settings.model, cache_dir=settings.cache_dir)
        source = _open_source(settings, store)
        try:
            parts = await asyncio.to_thread(_load, settings, store, source)
            await _serve_model(settings, host, store, parts)
        finally:
            source.close()


def _open_source(settings: WorkerSettings, store: ExpertStore) -> ExpertSource:
    if settings.expert_source == "local":
        return LocalSource(store)
    if settings.loader is None:
        raise ValueError("expert_source is loader, but no loader is given: set --loader host:port")
    return LoaderSource(settings.loader, ModelId(digest=store.digest, family=store.family))


def _load(settings: WorkerSettings, store: ExpertStore, source: ExpertSource) -> EngineParts:
    """Builds the engine's parts and brings the first residents in; blocking."""
    torch.set_num_threads(settings.threads or usable_cpus())
    options = EngineOptions(
        expert_memory=settings.expert_memory,
        miss_policy=settings.miss_policy,
        eviction=settings.eviction,
        max_context=min(settings.max_context, _longest_context(store)),
        max_concurrency=settings.max_concurrency,
        step_tokens=settings.step_tokens,
        io_threads=settings.io_threads,
        device=str(pick_device(settings.device)),
    )
    parts = build_parts(store, source, options)
    residency = parts.residency
    if settings.miss_policy == "reroute":
        residency.set_plan(bootstrap_plan(store.grid, residency.plan_slots), epoch=0)
        residency.wait_until_settled(timeout_seconds=settings.start_timeout_seconds)
    warm_up(parts)
    log.info(
        "%s: %d of %d experts fit %d bytes of slots, %s mode, on %s",
        store.family, residency.arena.num_slots, store.grid.num_experts_total, residency.arena.num_bytes,
        settings.miss_policy, options.device,
    )  # fmt: skip
    return parts


def _longest_context(store: ExpertStore) -> int:
    longest = store.config.get("max_position_embeddings")
    if not isinstance(longest, int):
        raise UnsupportedModelError(f"{store.folder}/config.json does not say max_position_embeddings")
    return longest


async def _serve_model(settings: WorkerSettings, host: ServiceHost, store: ExpertStore, parts: EngineParts) -> None:
    loop = asyncio.get_running_loop()
    readiness: asyncio.Queue[bool] = asyncio.Queue()
    runner = EngineRunner(parts, loop=loop, on_ready=readiness.put_nowait)
    encoder = PromptEncoder.open(
        store.folder, vocab_size=parts.model.config.vocab_size, max_context=parts.options.max_context
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
    _spawn_neighbours(settings, host, store, runner, service, model)

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
    readiness.put_nowait(True)
    try:
        await host.run()
    finally:
        await runner.stop()


def _spawn_neighbours(
    settings: WorkerSettings,
    host: ServiceHost,
    store: ExpertStore,
    runner: EngineRunner,
    service: WorkerService,
    model: ModelId,
) -> None:
    if settings.loader is not None:
        subscription = PlanSubscription(
            loader=settings.loader,
            model=model,
            grid=store.grid,
            runner=runner,
            heartbeat=service.state,
            heartbeat_seconds=settings.heartbeat_seconds,
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
