"""Which experts are in the arena: applies plans between steps, and loads what exact mode misses within one.

All bookkeeping happens on the engine's thread; loads run on a small thread pool and are committed by the engine.
It does not know what a request is, nor who decides the plan.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from emoe.core.errors import CheckpointError, EmoeError, NotReadyError
from emoe.core.eviction import EvictionPolicy
from emoe.core.experts import BoolGrid, ExpertGrid, ExpertId, FloatGrid, from_grid
from emoe.core.slots import ABSENT, SlotTable
from emoe.worker.arena import SlotArena
from emoe.worker.lookahead import Guesses
from emoe.worker.swaps import check_plan, is_routable_without, leaving_order, loading_order
from emoe.worker.transfer import Transfer

log = logging.getLogger(__name__)

LOAD_TIMEOUT_SECONDS = 120.0
RETRY_SECONDS = 1.0
QUIET_SECONDS = 10.0
"""A source that stays away is an error in the log once, not once an expert."""

_Load = concurrent.futures.Future[Callable[[], None]]


@dataclasses.dataclass(kw_only=True)
class LoadCounters:
    num_experts_loaded: int = 0
    num_bytes_loaded: int = 0
    stall_seconds: float = 0.0


class Residency:
    """`num_staging` slots are kept out of plans, so that newcomers land while those they replace still serve."""

    def __init__(
        self,
        *,
        arena: SlotArena,
        grid: ExpertGrid,
        transfer: Transfer,
        eviction: EvictionPolicy,
        executor: concurrent.futures.Executor,
        num_staging: int,
        keep_routable: bool,
        num_guesses_at_once: int = 0,
    ) -> None:
        self.table = SlotTable(num_slots=arena.num_slots, shape=grid.shape)
        self.arena = arena
        self.grid = grid
        self.counters = LoadCounters()
        self.guesses = Guesses(grid, num_slots=arena.num_slots, num_at_once=num_guesses_at_once)
        self.plan_slots = arena.num_slots - num_staging
        self.version = 0
        """Grows with every change of residency; device copies of the table are refreshed by it."""
        self.applied_epoch = 0
        self._keep_routable = keep_routable
        self._transfer = transfer
        self._eviction = eviction
        self._executor = executor
        self._loads: dict[ExpertId, _Load] = {}
        self._wanted: BoolGrid = np.zeros(grid.shape, dtype=np.bool_)
        self._epoch = 0
        self._settled = True
        self._retry_at = 0.0
        self._pending: collections.deque[ExpertId] = collections.deque()
        self.failed: set[ExpertId] = set()
        """Experts of the last plan whose bytes can never be right; the plan is applied without them."""
        self.last_error = ""
        self.source_is_away = False
        """Whether the last load failed because its neighbour was away."""
        self._quiet_until = 0.0
        self._routable_version = -1

    # plans

    def set_plan(self, wanted: BoolGrid, *, epoch: int, demand: FloatGrid | None = None) -> None:
        """Takes a plan to be applied by `advance`. PlanError if it is too large or leaves a layer unroutable."""
        check_plan(wanted, self.grid, num_slots=self.plan_slots, keep_routable=self._keep_routable)
        self._wanted, self._epoch, self._settled = wanted & self.grid.all_experts(), epoch, False
        self.failed.clear()
        weights = wanted.astype(np.float64) if demand is None else demand
        self._eviction.set_demand(weights)
        self._pending = collections.deque(loading_order(self._wanted & ~self.table.resident, weights, self.grid.rule))

    @property
    def is_settled(self) -> bool:
        """Whether the last plan is applied in full."""
        return self._settled

    def advance(self, *, now_seconds: float) -> None:
        """Between two steps: commits what has arrived, evicts what is no longer wanted, starts further loads."""
        if self._settled and not self._loads:
            return
        self._commit_done()
        while self._pending and now_seconds >= self._retry_at:
            expert = self._pending[0]
            if expert not in self._loads and self.table.slot(expert) == ABSENT:
                if not self.table.num_free and not self._evict_unwanted(expert.layer):
                    if not self._loads:
                        self._replace_layer(expert.layer)
                    return
                self._begin(expert)
            self._pending.popleft()
        if not self._pending and not self._loads:
            self._settled = True
            self.applied_epoch = self._epoch

    def wait_until_settled(self, *, timeout_seconds: float, cut_short: threading.Event | None = None) -> None:
        """Start-up: applies the plan in full. NotReadyError when it takes longer or is cut short; CheckpointError when
        experts that can never be read leave a layer without enough to choose from."""
        deadline = time.monotonic() + timeout_seconds
        while not self._settled:
            self.advance(now_seconds=time.monotonic())
            if self._loads:
                concurrent.futures.wait(self._loads.values(), 1.0, concurrent.futures.FIRST_COMPLETED)
            elif not self._settled:
                time.sleep(max(0.0, min(self._retry_at, deadline) - time.monotonic()))
            if cut_short is not None and cut_short.is_set():
                raise NotReadyError("told to stop before the first experts were loaded")
            if time.monotonic() > deadline and not self._settled:
                raise NotReadyError(
                    f"the first experts were not loaded within {timeout_seconds:.0f} s: "
                    f"{self.last_error or 'the source is slow'}"
                )
        self.check_routable()

    def check_routable(self) -> None:
        """Before a step that reroutes. CheckpointError when a layer has too few residents to choose from: what it
        computed would be no numbers."""
        if not self._keep_routable or self._routable_version == self.version:
            return
        for layer in self.grid.moe_layers:
            if not self.grid.rule.is_routable(self.table.resident[layer]):
                raise CheckpointError(f"layer {layer} has too few experts to route among: {self.last_error}")
        self._routable_version = self.version

    def _evict_unwanted(self, first_layer: int) -> bool:
        """Frees slots of experts that no plan wants, never leaving a layer unroutable."""
        unwanted = self.table.resident & ~self._wanted
        for leaving in leaving_order(unwanted, self.grid.rule, first_layer=first_layer):
            if not self._keep_routable or is_routable_without(leaving, self.table.resident, self.grid.rule):
                for expert in leaving:
                    self._evict(expert)
                return True
        return False

    def _replace_layer(self, layer: int) -> None:
        """The last way out, when staging cannot hold what makes the old experts dispensable: swaps one layer between
        two steps, waiting."""
        for expert in [e for e in from_grid(self.table.resident & ~self._wanted) if e.layer == layer]:
            self._evict(expert)
        for expert in from_grid(self._wanted & ~self.table.resident):
            if expert.layer == layer and self.table.num_free:
                self._begin(expert)
        while self._loads:
            self._wait(list(self._loads))

    # exact mode

    def load_for(
        self, layer: int, tokens_of: Mapping[int, int], foretell: Callable[[], list[ExpertId]] | None = None
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Yields (ready, failed) experts of one layer until all that `tokens_of` names were yielded.

        What was yielded before may be evicted by the next turn: use it at once. Misses are read concurrently, as
        many as there are slots; with fewer slots than needed experts, each is still read once. With all of them under
        way, what `foretell` says of another layer, the likeliest first, is read ahead.
        """
        self._commit_done()
        self._drop_guesses(layer, tokens_of)
        ready = [e for e in sorted(tokens_of) if self.table.slot(ExpertId(layer, e)) != ABSENT]
        waiting = set(tokens_of).difference(ready)
        self._eviction.touch(layer, tokens_of)
        foretold = foretell() if foretell is not None and self.guesses.are_made else []
        self._start_missing(layer, waiting, spared={*(ExpertId(layer, e) for e in ready), *foretold}, must=not ready)
        if all(ExpertId(layer, e) in self._loads for e in waiting):
            self._read_ahead(foretold, spared={*(ExpertId(layer, e) for e in tokens_of), *foretold})
        if ready:
            yield ready, []
        while waiting:
            self._start_missing(layer, waiting, spared=set(), must=True)
            done, failed = self._wait([ExpertId(layer, e) for e in waiting if ExpertId(layer, e) in self._loads])
            arrived = [e.index for e in done]
            waiting.difference_update(arrived, (e.index for e in failed))
            yield sorted(arrived), sorted(e.index for e in failed)

    def _start_missing(self, layer: int, waiting: set[int], *, spared: set[ExpertId], must: bool) -> None:
        """What is `spared` of other layers goes if nothing else can. `must`: one at least is to be under way."""
        keep = {ExpertId(layer, index) for index in waiting}
        for expert in sorted(keep):
            if expert in self._loads:
                continue
            if not self.table.num_free:
                candidates = [e for e in self.table.residents() if e not in keep]
                candidates = [e for e in candidates if e not in spared] or [e for e in candidates if e.layer != layer]
                if not candidates:
                    break
                self._evict(self._eviction.pick(candidates))
            self._begin(expert)
        assert self._loads or not (waiting and must), f"no slot can be freed for layer {layer}: {self.table.num_slots}"

    def _read_ahead(self, foretold: list[ExpertId], *, spared: set[ExpertId]) -> None:
        """Never for a source that is away, nor in the place of what is spared or as likely to be needed."""
        for expert in foretold:
            if expert in self._loads or expert in self.failed or self.table.slot(expert) != ABSENT:
                continue
            if not self.guesses.may_begin(self._loads) or time.monotonic() < self._retry_at:
                return
            if not self.table.num_free:
                candidates = [e for e in self.table.residents() if e not in spared]
                leaving = self._eviction.spare(candidates, chance=self.guesses.chance) if candidates else None
                if leaving is None:
                    return
                self._evict(leaving)
            self._begin(expert)
            self.guesses.begin(expert)

    def _drop_guesses(self, layer: int, needed: Mapping[int, int]) -> None:
        """Those of a layer that is reached which it does not need, unless their bytes are being read already."""
        for expert in self.guesses.reach(layer, needed, self._loads):
            if self._loads[expert].cancel():
                del self._loads[expert]
                self.table.abort(expert)
                self.guesses.take_back()

    def _wait(self, experts: list[ExpertId]) -> tuple[list[ExpertId], list[ExpertId]]:
        """Waits for the first of `experts` (of any load when none is under way) -> (arrived, failed)."""
        began = time.monotonic()
        futures = [self._loads[e] for e in experts] or list(self._loads.values())
        done, _ = concurrent.futures.wait(futures, LOAD_TIMEOUT_SECONDS, concurrent.futures.FIRST_COMPLETED)
        self.counters.stall_seconds += time.monotonic() - began
        if not done:
            raise NotReadyError(f"no expert arrived within {LOAD_TIMEOUT_SECONDS:.0f} s; is the source alive?")
        arrived, failed = self._commit_done()
        mine = set(experts)
        return [e for e in arrived if e in mine], [e for e in failed if e in mine]

    # loads

    def _begin(self, expert: ExpertId) -> None:
        slot = self.arena.bytes_of(self.table.begin_load(expert))
        self._loads[expert] = self._executor.submit(self._transfer.load, expert, slot, self._transfer.fence())

    def _commit_done(self) -> tuple[list[ExpertId], list[ExpertId]]:
        arrived, failed = [], []
        for expert, load in [(e, f) for e, f in self._loads.items() if f.done()]:
            del self._loads[expert]
            error = load.exception()
            if error is not None:
                self._give_up(expert, error)
                if not self.guesses.fail(expert):  # what was a guess is asked for anew by whoever needs it
                    failed.append(expert)
                continue
            self.guesses.arrive(expert)
            self.table.commit(expert)
            self.counters.num_experts_loaded += 1
            self.counters.num_bytes_loaded += self.arena.layout.num_bytes
            self.version += 1
            load.result()()
            arrived.append(expert)
        return arrived, failed

    def _give_up(self, expert: ExpertId, error: BaseException) -> None:
        """A neighbour that is away is asked again a little later; bytes that can never be right are not. Whatever else
        went wrong on the loading thread costs this expert alone, and its slot is free again."""
        self.table.abort(expert)
        self.last_error = f"expert {expert.index} of layer {expert.layer} could not be loaded: {error}"
        self.source_is_away = isinstance(error, NotReadyError)
        again = expert in self.failed or (isinstance(error, NotReadyError) and time.monotonic() < self._quiet_until)
        unexpected = None if isinstance(error, EmoeError | OSError) else error
        log.log(logging.DEBUG if again else logging.ERROR, "%s", self.last_error, exc_info=unexpected)
        if isinstance(error, NotReadyError):
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self._quiet_until = time.monotonic() + QUIET_SECONDS
            if self._wanted[expert.layer, expert.index]:
                self._pending.append(expert)
        else:
            self.failed.add(expert)

    def close(self) -> None:
        """Loads that have not begun never will; those under way end on their own when their source is closed."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _evict(self, expert: ExpertId) -> None:
        self.table.evict(expert)
        self.guesses.forget(expert)
        self.version += 1
