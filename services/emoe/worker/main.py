"""The worker process: opens the checkpoint, builds the engine, serves, and keeps its neighbours told."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from emoe.core.budget import slot_bytes
from emoe.core.errors import UnsupportedModelError
from emoe.runtime.grids import ModelId
from emoe.runtime.lifecycle import ServiceHost, service_host
from emoe.store.store import ExpertStore
from emoe.v1 import worker_pb2_grpc
from emoe.worker.build import EngineOptions, EngineParts, bootstrap_plan, build_parts
from emoe.worker.device import bound_kernel_cache, pick_device, usable_cpus
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

P = ParamSpec("P")
T = TypeVar("T")

SERVICE = "emoe.v1.WorkerService"
FIRST_PLAN_SECONDS = 5.0
POLL_SECONDS = 0.02
MAX_CALL_SECONDS = 3600.0
"""No shorter than the longest deadline that a scheduler passes on."""


async def serve(settings: WorkerSettings) -> None:
    async with service_host(
        settings, name="worker", max_receive_bytes=settings.max_request_bytes, max_call_seconds=MAX_CALL_SECONDS
    ) as host:
        store = await asyncio.to_thread(ExpertStore.open, settings.model, cache_dir=settings.cache_dir)
        source = _open_source(settings, store)
        cut_short = threading.Event()
        try:
            parts, encoder = await _on_a_passing_thread(_load, settings, store, source, cut_short)
            await _serve_model(settings, host, store, parts, encoder)
        finally:
            # A start that is told to stop still runs on its thread, which the process waits for.
            cut_short.set()
            source.close()


async def _on_a_passing_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Not on the event loop's own threads, which stay: OpenMP keeps a team of threads for every thread that ever
    computed, and with two teams alive their members sleep between products instead of spinning, at thrice the time."""
    executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="load")
    try:
        call = functools.partial(work, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(executor, call)
    finally:
        executor.shutdown(wait=False)


def _open_source(settings: WorkerSettings, store: ExpertStore) -> ExpertSource:
    if settings.expert_source == "local":
        return LocalSource(store)
    if settings.loader is None:
        raise ValueError("expert_source is loader, but no loader is given: set --loader host:port")
    return LoaderSource(settings.loader, ModelId(digest=store.digest, family=store.family))


def _load(
    settings: WorkerSettings, store: ExpertStore, source: ExpertSource, cut_short: threading.Event
) -> tuple[EngineParts, PromptEncoder]:
    """Builds the engine's parts and brings the first residents in; blocking."""
    for idle in settings_without_effect(settings):
        log.info("%s", idle)
    bound_kernel_cache()
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
    encoder = PromptEncoder.open(store.folder, vocab_size=_vocab_size(store), max_context=options.max_context)
    parts = build_parts(store, source, options)
    residency = parts.residency
    if settings.miss_policy == "reroute":
        residency.set_plan(bootstrap_plan(store.grid, residency.plan_slots), epoch=0)
        residency.wait_until_settled(timeout_seconds=settings.start_timeout_seconds, cut_short=cut_short)
    warm_up(parts, cut_short=cut_short)
    log.info(
        "%s: %d of %d experts fit %d bytes of slots, %s mode, on %s",
        store.family, residency.arena.num_slots, store.grid.num_experts_total, residency.arena.num_bytes,
        settings.miss_policy, options.device,
    )  # fmt: skip
    return parts, encoder


def settings_without_effect(settings: WorkerSettings) -> list[str]:
    """One line for each setting that was given and does nothing beside the others."""
    given, lines = settings.model_fields_set, []
    if settings.miss_policy == "reroute" and "eviction" in given:
        lines.append("eviction has no effect: with miss_policy reroute, plans alone say who stays")
    if settings.miss_policy == "load" and settings.eviction == "demand" and settings.loader is None:
        lines.append("eviction demand acts like lru: without a loader no demand is known")
    if settings.miss_policy == "load" and "start_timeout_seconds" in given:
        lines.append("start_timeout_seconds has no effect: with miss_policy load, experts come when they are needed")
    if settings.predictor is None and "report_seconds" in given:
        lines.append("report_seconds has no effect: without a predictor nothing is reported")
    if settings.loader is None and "heartbeat_seconds" in given:
        lines.append("heartbeat_seconds has no effect: without a loader there are no heartbeats")
    if settings.step_tokens < settings.max_concurrency:
        lines.append(f"step_tokens is raised to max_concurrency {settings.max_concurrency}: each sequence steps")
    return lines


def _vocab_size(store: ExpertStore) -> int:
    size = store.config.get("vocab_size")
    if type(size) is not int:
        raise UnsupportedModelError(f"{store.folder}/config.json does not say vocab_size")
    return size


def _longest_context(store: ExpertStore) -> int:
    longest = store.config.get("max_position_embeddings")
    if not isinstance(longest, int):
        raise UnsupportedModelError(f"{store.folder}/config.json does not say max_position_embeddings")
    return longest


async def _serve_model(
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
