"""Residency over a source made of memory: what arrives is what was asked for, whatever the order and the failures."""

from __future__ import annotations

import concurrent.futures
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emoe.core.errors import CheckpointError, NotReadyError
from emoe.core.eviction import LruEviction
from emoe.core.experts import BoolGrid, ExpertGrid, ExpertId, RoutingRule
from emoe.core.planning import GlobalGreedyPlanner
from emoe.core.slots import SlotState
from emoe.store.layout import ExpertLayout
from emoe.worker.arena import SlotArena
from emoe.worker.residency import Residency
from emoe.worker.transfer import HostTransfer

LAYOUT = ExpertLayout.build({"gate": (4, 4), "up": (4, 4), "down": (4, 4)}, "F32")
PLAIN = RoutingRule(num_experts=6, top_k=2)
GROUPED = RoutingRule(num_experts=8, top_k=3, num_groups=4, topk_groups=2, group_score_experts=2)


class MemorySource:
    """Every byte of an expert names it; some experts are corrupt for good."""

    def __init__(self, corrupt: frozenset[ExpertId] = frozenset()) -> None:
        self.corrupt = corrupt
        self.num_away = 0
        self.reads: list[ExpertId] = []

    def read_into(self, expert: ExpertId, buffer: memoryview) -> None:
        self.reads.append(expert)
        if self.num_away:
            self.num_away -= 1
            raise NotReadyError("the source is away")
        if expert in self.corrupt:
            raise CheckpointError(f"{expert} is corrupt")
        buffer[:] = bytes([mark(expert)]) * len(buffer)

    def close(self) -> None:
        """Nothing is held."""


def mark(expert: ExpertId) -> int:
    return expert.layer * 16 + expert.index + 1


def build(
    rule: RoutingRule,
    *,
    num_slots: int,
    num_staging: int,
    source: MemorySource,
    keep_routable: bool = True,
    num_guesses: int = 0,
) -> Residency:
    grid = ExpertGrid(num_layers=3, moe_layers=(1, 2), rule=rule, expert_bytes=LAYOUT.num_bytes)
    return Residency(
        arena=SlotArena(LAYOUT, num_slots=num_slots, slot_bytes=LAYOUT.num_bytes, device=torch.device("cpu")),
        grid=grid,
        transfer=HostTransfer(source),
        eviction=LruEviction(grid.shape),
        executor=concurrent.futures.ThreadPoolExecutor(3),
        num_staging=num_staging,
        keep_routable=keep_routable,
        num_guesses_at_once=num_guesses,
    )


def check_bytes(residency: Residency) -> None:
    for expert in residency.table.residents():
        slot = residency.arena.bytes_of(residency.table.slot(expert))
        assert bool((slot == mark(expert)).all()), f"slot of {expert} holds other bytes"


def random_plan(residency: Residency, seed: int) -> BoolGrid:
    demand = np.random.default_rng(seed).random(residency.grid.shape)
    return GlobalGreedyPlanner().plan(demand, num_slots=residency.plan_slots, grid=residency.grid)


@settings(max_examples=25, deadline=None)
@given(seeds=st.lists(st.integers(0, 1000), min_size=1, max_size=4), grouped=st.booleans(), spare=st.integers(0, 4))
def test_any_plan_is_reached_from_any_other_and_every_layer_stays_routable(
    seeds: list[int], grouped: bool, spare: int
) -> None:
    rule = GROUPED if grouped else PLAIN
    residency = build(rule, num_slots=2 * rule.min_residents + 2 + spare, num_staging=2, source=MemorySource())
    for epoch, seed in enumerate(seeds, start=1):
        wanted = random_plan(residency, seed)
        residency.set_plan(wanted, epoch=epoch)
        deadline = time.monotonic() + 20
        while not residency.is_settled:
            residency.advance(now_seconds=time.monotonic())
            if epoch > 1:
                assert all(rule.is_routable(residency.table.resident[layer]) for layer in residency.grid.moe_layers)
            assert time.monotonic() < deadline
        assert (residency.table.resident & wanted).sum() == wanted.sum()
        assert residency.applied_epoch == epoch
        check_bytes(residency)


@settings(max_examples=25, deadline=None)
@given(
    visits=st.lists(st.tuples(st.sampled_from([1, 2]), st.sets(st.integers(0, 5), min_size=1)), max_size=8),
    guesses=st.permutations(range(6)),
    num_slots=st.integers(1, 12),
)
def test_exact_mode_gives_every_needed_expert_once_with_its_own_bytes_whatever_is_foretold(
    visits: list[tuple[int, set[int]]], guesses: list[int], num_slots: int
) -> None:
    source = MemorySource()
    residency = build(PLAIN, num_slots=num_slots, num_staging=0, source=source, keep_routable=False, num_guesses=2)
    for layer, needed in visits:
        seen: list[int] = []
        foretold = [ExpertId(3 - layer, index) for index in guesses[: len(needed)]]
        for ready, failed in residency.load_for(layer, dict.fromkeys(needed, 1), lambda told=foretold: told):
            assert not failed
            for index in ready:
                slot = residency.table.slot(ExpertId(layer, index))
                assert bool((residency.arena.bytes_of(slot) == mark(ExpertId(layer, index))).all())
            seen += ready
        assert sorted(seen) == sorted(needed)


def test_a_corrupt_expert_fails_alone() -> None:
    bad = ExpertId(1, 3)
    residency = build(PLAIN, num_slots=4, num_staging=0, source=MemorySource(frozenset({bad})), keep_routable=False)
    outcomes = list(residency.load_for(1, dict.fromkeys([0, 3, 5], 1)))
    assert sorted(i for ready, _ in outcomes for i in ready) == [0, 5]
    assert [i for _, failed in outcomes for i in failed] == [3]


def test_a_plan_is_applied_without_an_expert_that_can_never_be_read() -> None:
    residency = build(PLAIN, num_slots=10, num_staging=2, source=MemorySource(frozenset({ExpertId(1, 3)})))
    wanted = np.zeros(residency.grid.shape, dtype=np.bool_)
    wanted[1, 1:5] = wanted[2, 1:5] = True
    residency.set_plan(wanted, epoch=5)
    residency.wait_until_settled(timeout_seconds=20)
    assert residency.failed == {ExpertId(1, 3)}
    assert residency.table.resident.sum() == 7


def test_a_source_that_is_away_is_asked_again() -> None:
    source = MemorySource()
    residency = build(PLAIN, num_slots=10, num_staging=2, source=source)
    source.num_away = 2
    residency.set_plan(random_plan(residency, 0), epoch=1)
    residency.wait_until_settled(timeout_seconds=20)
    assert source.num_away == 0
    assert residency.applied_epoch == 1
    check_bytes(residency)


def test_a_plan_beyond_the_slots_is_refused() -> None:
    residency = build(PLAIN, num_slots=6, num_staging=2, source=MemorySource())
    with pytest.raises(Exception, match="does not fit 4 slots"):
        residency.set_plan(residency.grid.all_experts(), epoch=1)


def test_whatever_goes_wrong_on_a_loading_thread_costs_one_expert_and_no_slot() -> None:
    class Broken(MemorySource):
        def read_into(self, expert: ExpertId, buffer: memoryview) -> None:
            if expert == ExpertId(1, 0):
                raise RuntimeError("a bug of the source")
            super().read_into(expert, buffer)

    residency = build(PLAIN, num_slots=3, num_staging=0, source=Broken(), keep_routable=False)
    for _ in range(4):
        outcomes = list(residency.load_for(1, dict.fromkeys([0, 1, 2], 1)))
        assert [i for _, failed in outcomes for i in failed] == [0]
        assert sorted(i for ready, _ in outcomes for i in ready) == [1, 2]
    assert SlotState.LOADING not in map(residency.table.state, range(3))
    assert "a bug of the source" in residency.last_error


def test_experts_that_were_loading_when_a_step_was_given_up_are_used_by_the_next() -> None:
    residency = build(PLAIN, num_slots=3, num_staging=0, source=MemorySource(), keep_routable=False)
    given_up = residency.load_for(1, dict.fromkeys([0, 1, 2], 1))
    next(given_up)
    given_up.close()
    outcomes = list(residency.load_for(1, dict.fromkeys([0, 1, 2], 1)))
    assert sorted(i for ready, _ in outcomes for i in ready) == [0, 1, 2]
    assert len(residency._transfer._source.reads) == 3  # type: ignore[attr-defined]
    check_bytes(residency)


def test_a_start_whose_corrupt_experts_leave_a_layer_unroutable_is_refused_by_name() -> None:
    corrupt = frozenset(ExpertId(2, index) for index in range(5))
    residency = build(PLAIN, num_slots=10, num_staging=2, source=MemorySource(corrupt))
    residency.set_plan(random_plan(residency, 0), epoch=1)
    with pytest.raises(CheckpointError, match=r"layer 2 .* is corrupt"):
        residency.wait_until_settled(timeout_seconds=20)


def test_a_group_that_can_only_go_as_a_whole_goes_as_a_whole() -> None:
    """Three groups of three, of which a token picks two and six experts: none can be missed alone."""
    rule = RoutingRule(num_experts=12, top_k=6, num_groups=4, topk_groups=2, group_score_experts=2)
    residency = build(rule, num_slots=18, num_staging=3, source=MemorySource())
    for epoch, groups in enumerate(({0, 1, 2}, {1, 3}, {0, 2}, {0, 1, 3}), start=1):
        wanted = np.zeros(residency.grid.shape, dtype=np.bool_)
        wanted[1] = np.repeat([group in groups for group in range(4)], 3)
        wanted[2, :6] = True
        residency.set_plan(wanted, epoch=epoch)
        residency.wait_until_settled(timeout_seconds=20)
        assert (residency.table.resident & wanted).sum() == wanted.sum()
    check_bytes(residency)


def test_a_slow_source_is_waited_for_without_spinning() -> None:
    source = MemorySource()
    source.num_away = 3
    residency = build(PLAIN, num_slots=10, num_staging=2, source=source)
    residency.set_plan(random_plan(residency, 0), epoch=1)
    began = time.process_time()
    residency.wait_until_settled(timeout_seconds=20)
    assert time.process_time() - began < 0.5
