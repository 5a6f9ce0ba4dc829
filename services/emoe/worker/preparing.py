"""From a checkpoint to an engine that is warm: built, its first experts in their slots. Blocking, on a passing thread.

What the settings say is turned into the engine's options here, and nowhere else.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import functools
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from emoe.core.errors import BudgetError, CheckpointError, UnsupportedModelError
from emoe.core.memory import AUTO
from emoe.runtime.cpus import usable_cpus
from emoe.store.calibration import CalibrationInfo, calibration_beside, read_calibration_info
from emoe.store.store import ExpertStore
from emoe.worker.build import EngineOptions, EngineParts, build_parts, load_base_model, plan_slots
from emoe.worker.device import bound_kernel_cache, pick_device
from emoe.worker.prompts import PromptEncoder, vocab_size_of
from emoe.worker.settings import WorkerSettings
from emoe.worker.sizing import check_before_loading, needs_of, size_experts
from emoe.worker.sources import ExpertSource
from emoe.worker.warmup import bring_first_residents, warm_up

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


async def on_a_passing_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Not on the event loop's own threads, which stay: OpenMP keeps a team of threads for every thread that ever
    computed, and with two teams alive their members sleep between products instead of spinning, at thrice the time."""
    executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="load")
    try:
        call = functools.partial(work, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(executor, call)
    finally:
        executor.shutdown(wait=False)


def prepare(
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
        lookahead=settings.lookahead,
        pinned=settings.pinned,
        max_context=min(settings.max_context, _longest_context(store)),
        max_concurrency=settings.max_concurrency,
        step_tokens=settings.step_tokens,
        io_threads=settings.io_threads,
        device=str(pick_device(settings.device)),
        calibration=_find_calibration(settings, store) if settings.miss_policy == "reroute" else None,
    )
    encoder = PromptEncoder.open(store.folder, vocab_size=vocab_size_of(store), max_context=options.max_context)
    model = None
    if settings.expert_memory == AUTO:
        model, options = _with_what_is_left(settings, store, source, options, cut_short)
    _say_calibration(settings, store, options)
    if settings.loader is not None and plan_slots(store.grid, options).num_slots < store.grid.num_experts_total:
        options = dataclasses.replace(options, own_routing_tokens=settings.own_routing_tokens)
    parts = build_parts(store, source, options, model)
    residency = parts.residency
    bring_first_residents(parts, timeout_seconds=settings.start_timeout_seconds, cut_short=cut_short)
    warm_up(parts, cut_short=cut_short)
    log.info(
        "%s: %d of %d experts fit %d bytes of slots, %s mode, on %s",
        store.family, residency.arena.num_slots, store.grid.num_experts_total, residency.arena.num_bytes,
        settings.miss_policy, options.device,
    )  # fmt: skip
    return parts, encoder


def _with_what_is_left(
    settings: WorkerSettings,
    store: ExpertStore,
    source: ExpertSource,
    options: EngineOptions,
    cut_short: threading.Event,
) -> tuple[Any, EngineOptions]:
    """The base model, and the options with what is left beside it. BudgetError where that is too little."""
    needs = needs_of(store, options)
    check_before_loading(needs, options)
    model = load_base_model(store, options)
    sizing = size_experts(
        store,
        source,
        options,
        model,
        needs=needs,
        timeout_seconds=settings.start_timeout_seconds,
        cut_short=cut_short,
    )
    sizing.check()
    log.info("expert_memory auto: %s", sizing)
    if options.device.startswith("cuda"):
        torch.cuda.empty_cache()  # what the trial took is the device's again
    return model, dataclasses.replace(options, expert_memory=str(sizing.expert_bytes))


def _find_calibration(settings: WorkerSettings, store: ExpertStore) -> CalibrationInfo | None:
    """CheckpointError for one that was asked for by its path and is missing or not this model's."""
    if isinstance(settings.calibration, Path):
        path = settings.calibration
        info = read_calibration_info(path, digest=store.digest, fingerprint=store.fingerprint())
        if info is None:
            raise CheckpointError(f"{path}: there is no such file; make it with `emoe profile --calibrate`")
        return info
    if settings.calibration == "off":
        return None
    try:
        return calibration_beside(store)
    except CheckpointError as error:
        log.error("the calibration is left out: %s", error)  # noqa: TRY400 - the message says it all
        return None


def _say_calibration(settings: WorkerSettings, store: ExpertStore, options: EngineOptions) -> None:
    """What becomes of it. BudgetError for one that was asked for by its path and leaves too few slots."""
    info, budget = options.calibration, plan_slots(store.grid, options)
    if info is None:
        return
    if budget.reserved_bytes:
        log.info(
            "%s: %d bytes, %.1f slots of the expert memory", info.path, info.num_bytes,
            info.num_bytes / budget.slot_bytes,
        )  # fmt: skip
    elif budget.num_slots == store.grid.num_experts_total:
        log.info("%s is not used: all experts fit", info.path)
    else:
        needed = budget.min_slots * budget.slot_bytes + info.num_bytes
        problem = f"{info.path} takes {info.num_bytes} bytes: raise the expert memory to {needed} bytes"
        if isinstance(settings.calibration, Path):
            raise BudgetError(f"{problem}, or leave it out with calibration off")
        log.warning("the calibration is left out: %s", problem)


def settings_without_effect(settings: WorkerSettings) -> list[str]:
    """One line for each setting that was given and does nothing beside the others."""
    given, lines = settings.model_fields_set, []
    if settings.miss_policy == "reroute" and "eviction" in given:
        lines.append("eviction has no effect: with miss_policy reroute, plans alone say who stays")
    if settings.miss_policy == "reroute" and settings.lookahead:
        lines.append("lookahead has no effect: with miss_policy reroute, no expert is waited for")
    if settings.miss_policy == "reroute" and settings.pinned:
        lines.append("pinned has no effect: with miss_policy reroute, the loader's plans hold what is pinned")
    if settings.miss_policy == "load" and settings.eviction == "demand" and settings.loader is None:
        lines.append("eviction demand acts like lru: without a loader no demand is known")
    if settings.miss_policy == "load" and settings.model and "start_timeout_seconds" in given:
        lines.append("start_timeout_seconds has no effect: with miss_policy load, experts come when they are needed")
    if settings.miss_policy == "load" and "calibration" in given:
        lines.append("calibration has no effect: with miss_policy load, no choice of the router is changed")
    if settings.predictor is None and "report_seconds" in given:
        lines.append("report_seconds has no effect: without a predictor nothing is reported")
    if settings.loader is None and "heartbeat_seconds" in given:
        lines.append("heartbeat_seconds has no effect: without a loader there are no heartbeats")
    if settings.loader is None and "own_routing_tokens" in given:
        lines.append("own_routing_tokens has no effect: without a loader nobody plans for the running requests")
    if settings.step_tokens < settings.max_concurrency:
        lines.append(f"step_tokens is raised to max_concurrency {settings.max_concurrency}: each sequence steps")
    return lines


def _longest_context(store: ExpertStore) -> int:
    longest = store.config.get("max_position_embeddings")
    if not isinstance(longest, int):
        raise UnsupportedModelError(f"{store.folder}/config.json does not say max_position_embeddings")
    return longest
