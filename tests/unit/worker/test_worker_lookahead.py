"""Reading ahead: guesses come from the next layer's own router, and cost nobody what it needs."""

from __future__ import annotations

import concurrent.futures
import threading

import torch
import transformers
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

from emoe.core.errors import NotReadyError
from emoe.core.eviction import FrequencyEviction, PinnedEviction
from emoe.core.experts import ExpertGrid, ExpertId, RoutingRule
from emoe.store.layout import ExpertLayout
from emoe.worker.arena import SlotArena
from emoe.worker.lookahead import NextLayer
from emoe.worker.residency import Residency
from emoe.worker.transfer import HostTransfer

LAYOUT = ExpertLayout.build({"gate": (4, 4), "up": (4, 4), "down": (4, 4)}, "F32")
GRID = ExpertGrid(
    num_layers=3, moe_layers=(1, 2), rule=RoutingRule(num_experts=6, top_k=2), expert_bytes=LAYOUT.num_bytes
)
DEADLINE_SECONDS = 20


class RecordedSource:
    """Notes what is read; `held` is read only once `released`; of `away`, each read fails once."""

    def __init__(self, *, held: ExpertId | None = None, away: set[ExpertId] | None = None) -> None:
        self.reads: list[ExpertId] = []
        self.is_held = threading.Event()
        self.released = threading.Event()
        self._held = held
        self._away = away or set()

    def read_into(self, expert: ExpertId, buffer: memoryview) -> None:
        self.reads.append(expert)
        if expert in self._away:
            self._away.discard(expert)
            raise NotReadyError("the source is away")
        if expert == self._held:
            self.is_held.set()
            assert self.released.wait(DEADLINE_SECONDS)
        buffer[:] = bytes(len(buffer))

    def close(self) -> None:
        """Nothing is held."""


def build(source: RecordedSource, *, num_slots: int = 8, pinned: set[ExpertId] | None = None) -> Residency:
    return Residency(
        arena=SlotArena(LAYOUT, num_slots=num_slots, slot_bytes=LAYOUT.num_bytes, device=torch.device("cpu")),
        grid=GRID,
        transfer=HostTransfer(source),
        eviction=PinnedEviction(FrequencyEviction(GRID.shape), pinned or set()),
        executor=concurrent.futures.ThreadPoolExecutor(1),
        num_staging=0,
        keep_routable=False,
        num_guesses_at_once=2,
    )


def visit(residency: Residency, layer: int, needed: list[int], foretold: list[ExpertId]) -> list[int]:
    """The experts that failed; all others were ready once."""
    outcomes = list(residency.load_for(layer, dict.fromkeys(needed, 1), lambda: foretold))
    failed = [index for _, indices in outcomes for index in indices]
    assert sorted([index for ready, _ in outcomes for index in ready] + failed) == needed
    return failed


def settle(residency: Residency) -> None:
    """All loads under way have ended."""
    concurrent.futures.wait(residency._loads.values(), DEADLINE_SECONDS)
    residency.advance(now_seconds=0)


def test_the_next_router_is_asked_and_the_weightiest_come_first() -> None:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(hidden_size=8, num_local_experts=6, num_experts_per_tok=2)
    router = MixtralTopKRouter(config)
    torch.nn.init.normal_(router.weight)
    hidden_TD = torch.randn(5, 8)
    with torch.inference_mode():
        foretold = NextLayer(2, router).foretell(hidden_TD)
        _, weights_TK, ids_TK = router(hidden_TD)
    weight_of = {e: float(weights_TK[ids_TK == e].sum()) for e in ids_TK.unique().tolist()}
    assert foretold == [ExpertId(2, e) for e in sorted(weight_of, key=lambda e: -weight_of[e])]


def test_what_is_foretold_is_read_before_its_layer_is_reached_and_counted_when_used() -> None:
    source = RecordedSource()
    residency = build(source)
    assert visit(residency, 1, [0], [ExpertId(2, 3), ExpertId(2, 5)]) == []
    settle(residency)
    assert set(source.reads) == {ExpertId(1, 0), ExpertId(2, 3), ExpertId(2, 5)}
    assert visit(residency, 2, [3], []) == []
    assert len(source.reads) == 3
    assert (residency.guesses.num_begun, residency.guesses.num_used) == (2, 1)


def test_misses_go_before_guesses_and_a_needless_guess_that_waits_its_turn_is_dropped() -> None:
    source = RecordedSource(held=ExpertId(2, 0))
    residency = build(source)
    assert visit(residency, 1, [4], [ExpertId(2, 0), ExpertId(2, 1)]) == []
    assert source.is_held.wait(DEADLINE_SECONDS)

    def release() -> list[ExpertId]:
        source.released.set()
        return []

    outcomes = list(residency.load_for(2, {3: 1}, release))
    settle(residency)
    assert outcomes == [([3], [])]
    assert source.reads == [ExpertId(1, 4), ExpertId(2, 0), ExpertId(2, 3)]
    assert (residency.guesses.num_begun, residency.guesses.num_used) == (1, 0)


def test_a_guess_that_fails_costs_nobody_and_is_read_anew_by_whoever_needs_it() -> None:
    source = RecordedSource(away={ExpertId(2, 3)})
    residency = build(source)
    assert visit(residency, 1, [0], [ExpertId(2, 3)]) == []
    assert visit(residency, 2, [3, 4], []) == []
    assert source.reads.count(ExpertId(2, 3)) == 2


def test_a_guess_never_takes_the_slot_of_a_pinned_expert_nor_of_one_in_use_or_foretold() -> None:
    source = RecordedSource()
    residency = build(source, pinned={ExpertId(2, index) for index in (0, 1)})
    visit(residency, 2, [0, 1, 2], [])
    visit(residency, 1, [0, 1, 2, 3, 4], [])
    visit(residency, 1, [0, 1, 2, 3, 4], [ExpertId(2, 2), ExpertId(2, 5)])
    settle(residency)
    assert ExpertId(2, 5) not in source.reads
    assert residency.table.num_free == 0


def test_a_guess_takes_no_slot_of_an_expert_as_likely_to_be_needed() -> None:
    source = RecordedSource()
    residency = build(source)
    visit(residency, 1, [0, 1, 2, 3, 4], [])
    visit(residency, 2, [0, 1, 2], [])
    for _ in range(20):
        list(residency.load_for(1, {0: 1}))
        list(residency.load_for(2, {1: 1}))
    assert residency.guesses.chance < 0.5
    visit(residency, 1, [1, 2, 3, 4], [ExpertId(2, 0), ExpertId(2, 2), ExpertId(2, 4)])
    settle(residency)
    assert ExpertId(1, 0) in residency.table.residents()
    assert ExpertId(2, 1) in residency.table.residents()


def test_with_slots_for_one_token_nothing_is_read_ahead() -> None:
    source = RecordedSource()
    residency = build(source, num_slots=4)
    visit(residency, 1, [0], [ExpertId(2, 3)])
    settle(residency)
    assert source.reads == [ExpertId(1, 0)]
