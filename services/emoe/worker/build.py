"""Puts an engine together: checkpoint, arena, residency, model, KV. One place says what depends on what."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
from typing import Any, cast

import numpy as np
import torch

from emoe.core.budget import SlotBudget, slot_bytes, split_budget
from emoe.core.errors import CheckpointError
from emoe.core.eviction import EVICTION_POLICIES, PinnedEviction
from emoe.core.experts import BoolGrid, ExpertGrid, ExpertId
from emoe.core.memory import parse_memory
from emoe.core.planning import GlobalGreedyPlanner, check_pinned
from emoe.store.calibration import CalibrationInfo
from emoe.store.store import ExpertStore
from emoe.store.strict_json import parse_object
from emoe.worker import experts
from emoe.worker.arena import DTYPES, SlotArena
from emoe.worker.base_linears import pack_linears
from emoe.worker.calibration import CalibratedLayer
from emoe.worker.calibration_file import load_calibration
from emoe.worker.calibration_hooks import attach_calibration
from emoe.worker.engine import Engine
from emoe.worker.expert_weights import ExpertWeights, PlainWeights
from emoe.worker.experts import LayerExperts
from emoe.worker.families import family_of
from emoe.worker.graphs import CudaGraphs
from emoe.worker.grouped import PlainStack, SlotStack, can_group
from emoe.worker.kv import KvCache
from emoe.worker.loading import experts_modules, load_model, router_modules
from emoe.worker.lookahead import NextLayer
from emoe.worker.onednn import PackedOrder
from emoe.worker.packed_weights import PackedWeights, PackingTransfer, orders_of
from emoe.worker.quantised.base_weights import DecodedBase
from emoe.worker.quantised.stack import QuantisedStack
from emoe.worker.quantised.weights import QuantisedWeights
from emoe.worker.residency import Residency
from emoe.worker.routing import DeviceTable, StepRouting, reroute_hook
from emoe.worker.sampling import Sampler, sample
from emoe.worker.sources import ExpertSource
from emoe.worker.transfer import CudaTransfer, HostTransfer, Transfer

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """`expert_memory`: a share of all expert bytes ("25%") or a size ("2GiB"); never auto, which `worker.sizing` turns
    into bytes. `miss_policy`: "reroute" or "load"."""

    expert_memory: str = "100%"
    miss_policy: str = "reroute"
    eviction: str = "frequency"
    lookahead: bool = False
    """Load mode: read ahead what the next layer's router would choose."""
    pinned: tuple[ExpertId, ...] = ()
    max_context: int = 2048
    max_concurrency: int = 8
    step_tokens: int = 2048
    io_threads: int = 4
    device: str = "cpu"
    own_routing_tokens: int = 0
    calibration: CalibrationInfo | None = None
    """Used in reroute mode, where the budget has room for it and not for all experts (`core.budget`)."""


@dataclasses.dataclass(frozen=True)
class EngineParts:
    """What outlives one engine: a dead engine is rebuilt from these."""

    model: Any
    residency: Residency
    table: DeviceTable
    routing: StepRouting
    eos_token_ids: frozenset[int]
    options: EngineOptions
    static_rows: int = 0
    """Steps of so many sequences, of decodes alone, are recorded as CUDA graphs."""
    sampler: Sampler = sample

    def build_engine(self) -> Engine:
        options = self.options
        device = torch.device(options.device)
        return Engine(
            model=self.model,
            residency=self.residency,
            table=self.table,
            routing=self.routing,
            kv=KvCache(num_rows=options.max_concurrency, max_context=options.max_context),
            device=device,
            eos_token_ids=self.eos_token_ids,
            step_tokens=options.step_tokens,
            own_routing_tokens=options.own_routing_tokens,
            replays=CudaGraphs(device) if self.static_rows else None,
            static_rows=self.static_rows,
            sampler=self.sampler,
        )


def build_parts(
    store: ExpertStore, source: ExpertSource, options: EngineOptions, model: Any | None = None
) -> EngineParts:
    """Loads the base model, unless it is there, and sets the arena up; no expert is loaded yet."""
    budget = plan_slots(store.grid, options)
    check_pinned(options.pinned, store.grid)
    model = load_base_model(store, options) if model is None else model
    packed = _packed_parts(store, next(iter(experts_modules(model).values())), options)
    residency = build_residency(store, source, options, budget, packed)
    routing, table = StepRouting(), DeviceTable(residency, torch.device(options.device))
    calibrated = _calibrate(model, store, options, table) if budget.reserved_bytes else {}
    stack: SlotStack | None = None
    family = family_of(store.family)
    routers = router_modules(model, family)
    weights: ExpertWeights | None = None
    for layer, module in experts_modules(model).items():
        weights = weights or _build_weights(store, module, residency.arena, torch.device(options.device))
        stack = stack or _build_stack(store, module, residency.arena, options)
        link = LayerExperts(
            layer,
            residency=residency,
            weights=weights,
            table=table,
            routing=routing,
            mode=options.miss_policy,
            grouped=stack,
            following=NextLayer(layer + 1, routers[layer + 1]) if layer + 1 in routers else None,
        )
        setattr(module, experts.LINK, link)
    if options.miss_policy == "reroute":
        for layer, router in routers.items():
            router.register_forward_hook(reroute_hook(family, layer, table, routing, calibrated.get(layer)))
    return EngineParts(
        model, residency, table, routing, read_eos_token_ids(store), options, static_rows(stack, store.grid, options)
    )


def load_base_model(store: ExpertStore, options: EngineOptions) -> Any:
    """Everything but routed experts, on the device."""
    device = torch.device(options.device)
    model = load_model(as_loaded(store), device)
    if device.type == "cpu":
        pack_linears(model)
    return model


def as_loaded(store: ExpertStore) -> ExpertStore:
    """The store itself; one with quantised base linears as if they were not."""
    # Loading asks for folder, family, dtype and base tensors, which both have.
    return cast("ExpertStore", DecodedBase(store)) if store.base_linears else store


def _packed_parts(store: ExpertStore, module: Any, options: EngineOptions) -> dict[str, PackedOrder]:
    """Weights that slots hold in oneDNN's order: on a CPU, in reroute mode. In exact mode each miss would wait for its
    packing, and since its bits must not depend on the budget, it stays plain where nothing misses too."""
    if options.miss_policy != "reroute" or torch.device(options.device).type != "cpu":
        return {}
    if store.quantisation is not None or module.is_transposed:
        return {}
    return orders_of(store.layout)


def _build_weights(store: ExpertStore, module: Any, arena: SlotArena, device: torch.device) -> ExpertWeights:
    if arena.packed:
        return PackedWeights(arena, has_bias=module.has_bias)
    if store.quantisation is None:
        return PlainWeights(arena, transposed=module.is_transposed, has_bias=module.has_bias)
    dtype = DTYPES[store.dtype]
    return QuantisedWeights(arena, store.quantisation, dtype=dtype, device=device, has_bias=module.has_bias)


def _build_stack(store: ExpertStore, module: Any, arena: SlotArena, options: EngineOptions) -> SlotStack | None:
    """What grouped products compute from: on a GPU, where a step that reroutes needs nothing of the host."""
    device = torch.device(options.device)
    if options.miss_policy != "reroute" or device.type != "cuda":
        return None
    if store.quantisation is None:
        return PlainStack(arena, transposed=module.is_transposed) if can_group(arena, device) else None
    if DTYPES[store.dtype] is not torch.bfloat16:
        return None
    rule = store.grid.rule
    return QuantisedStack(arena, store.quantisation, dtype=torch.bfloat16, num_experts=rule.num_experts)


def static_rows(stack: SlotStack | None, grid: ExpertGrid, options: EngineOptions) -> int:
    """How many sequences a recorded step may have; said once on a GPU where it has none, or not all."""
    rows = options.max_concurrency if stack else 0
    while stack is not None and rows and not stack.takes(rows * grid.rule.top_k):
        rows -= 1
    if options.device.startswith("cuda") and rows < options.max_concurrency:
        why = "exact mode" if options.miss_policy == "load" else "these slots"
        log.info("steps of more than %d sequences do not run as CUDA graphs: %s would wait for the host", rows, why)
    return rows


def plan_slots(grid: ExpertGrid, options: EngineOptions) -> SlotBudget:
    """BudgetError when the expert memory holds too few."""
    budget = split_budget(
        grid,
        budget_bytes=parse_memory(options.expert_memory, total_bytes=grid.num_experts_total * slot_bytes(grid)),
        reroute=options.miss_policy == "reroute",
        reserved_bytes=options.calibration.num_bytes if options.calibration else 0,
    )
    budget.check()
    return budget


def _calibrate(
    model: Any, store: ExpertStore, options: EngineOptions, table: DeviceTable
) -> dict[int, CalibratedLayer]:
    assert options.calibration is not None
    device, hidden_size = torch.device(options.device), model.config.hidden_size
    calibration = load_calibration(options.calibration, store.grid, hidden_size=hidden_size, device=device)
    return attach_calibration(calibration, model, family_of(store.family), lacking=lambda: table.lacks_experts)


def build_residency(
    store: ExpertStore,
    source: ExpertSource,
    options: EngineOptions,
    budget: SlotBudget,
    packed: dict[str, PackedOrder],
) -> Residency:
    grid = store.grid
    device = torch.device(options.device)
    arena = SlotArena(
        store.layout, num_slots=budget.num_slots, slot_bytes=budget.slot_bytes, device=device, packed=packed
    )
    transfer = _build_transfer(source, store.layout.num_bytes, options)
    return Residency(
        arena=arena,
        grid=grid,
        transfer=PackingTransfer(transfer, store.layout, packed) if packed else transfer,
        eviction=PinnedEviction(EVICTION_POLICIES[options.eviction](grid.shape), options.pinned),
        executor=concurrent.futures.ThreadPoolExecutor(options.io_threads, thread_name_prefix="expert-io"),
        num_staging=budget.num_staging,
        keep_routable=options.miss_policy == "reroute",
        num_guesses_at_once=options.io_threads if options.lookahead and options.miss_policy == "load" else 0,
    )


def _build_transfer(source: ExpertSource, expert_bytes: int, options: EngineOptions) -> Transfer:
    if options.device.startswith("cuda"):
        device = torch.device(options.device)
        return CudaTransfer(source, expert_bytes=expert_bytes, num_buffers=options.io_threads, device=device)
    return HostTransfer(source)


def bootstrap_plan(grid: ExpertGrid, num_slots: int) -> BoolGrid:
    """The plan a worker starts from while nobody has told it anything: as many experts of each layer as fit."""
    if num_slots >= grid.num_experts_total:
        return grid.all_experts()
    # The first experts of every layer alike: a demand that falls with the index.
    falling = np.broadcast_to(-np.arange(grid.rule.num_experts, dtype=np.float64), grid.shape)
    return GlobalGreedyPlanner().plan(falling, num_slots=num_slots, grid=grid)


def read_eos_token_ids(store: ExpertStore) -> frozenset[int]:
    """generation_config.json decides where there is one, config.json else; each gives one id, several or none."""
    path = store.folder / "generation_config.json"
    try:
        generation = parse_object(path.read_bytes()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); fetch the file again") from error
    ids = generation.get("eos_token_id", store.config.get("eos_token_id"))
    listed = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if not all(type(token_id) is int for token_id in listed):
        raise CheckpointError(f"{path}: eos_token_id must be a token id or a list of them, not {ids!r:.80}")
    return frozenset(listed)
