"""The slot table conserves slots under any sequence of loads, commits, aborts and evictions."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from emoe.core.experts import ExpertId
from emoe.core.slots import ABSENT, SlotState, SlotTable

SHAPE = (3, 4)
NUM_SLOTS = 5
EXPERTS = [ExpertId(layer, index) for layer in range(SHAPE[0]) for index in range(SHAPE[1])]


class SlotTableMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = SlotTable(num_slots=NUM_SLOTS, shape=SHAPE)
        self.loading: dict[ExpertId, int] = {}
        self.resident: dict[ExpertId, int] = {}

    @precondition(lambda self: self.table.num_free)
    @rule(data=st.data())
    def begin_load(self, data: st.DataObject) -> None:
        expert = data.draw(st.sampled_from([e for e in EXPERTS if e not in self.loading and e not in self.resident]))
        self.loading[expert] = self.table.begin_load(expert)

    @precondition(lambda self: self.loading)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        expert = data.draw(st.sampled_from(sorted(self.loading)))
        self.table.commit(expert)
        self.resident[expert] = self.loading.pop(expert)

    @precondition(lambda self: self.loading)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        expert = data.draw(st.sampled_from(sorted(self.loading)))
        self.table.abort(expert)
        del self.loading[expert]

    @precondition(lambda self: self.resident)
    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        expert = data.draw(st.sampled_from(sorted(self.resident)))
        self.table.evict(expert)
        del self.resident[expert]

    @invariant()
    def every_slot_is_free_loading_or_resident(self) -> None:
        expected = dict.fromkeys(range(NUM_SLOTS), SlotState.FREE)
        expected |= dict.fromkeys(self.loading.values(), SlotState.LOADING)
        expected |= dict.fromkeys(self.resident.values(), SlotState.RESIDENT)
        assert {slot: self.table.state(slot) for slot in range(NUM_SLOTS)} == expected
        assert self.table.num_free == list(expected.values()).count(SlotState.FREE)

    @invariant()
    def no_two_experts_share_a_slot(self) -> None:
        slots = [*self.loading.values(), *self.resident.values()]
        assert len(slots) == len(set(slots))
        assert all(0 <= slot < NUM_SLOTS for slot in slots)

    @invariant()
    def only_residents_are_shown_to_the_model(self) -> None:
        assert {e: self.table.slot(e) for e in EXPERTS if self.table.slot(e) != ABSENT} == self.resident
        assert int(self.table.resident.sum()) == len(self.resident)
        assert sorted(self.table.residents()) == sorted(self.resident)


TestSlotTable = SlotTableMachine.TestCase
TestSlotTable.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_loading_expert_is_not_yet_resident() -> None:
    table = SlotTable(num_slots=1, shape=SHAPE)
    slot = table.begin_load(EXPERTS[0])
    assert table.slot(EXPERTS[0]) == ABSENT
    assert table.state(slot) is SlotState.LOADING


def test_an_expert_cannot_load_twice() -> None:
    table = SlotTable(num_slots=2, shape=SHAPE)
    table.begin_load(EXPERTS[0])
    with pytest.raises(AssertionError, match="loading already"):
        table.begin_load(EXPERTS[0])
    table.commit(EXPERTS[0])
    with pytest.raises(AssertionError, match="resident already"):
        table.begin_load(EXPERTS[0])


def test_a_loading_expert_cannot_be_evicted() -> None:
    table = SlotTable(num_slots=1, shape=SHAPE)
    table.begin_load(EXPERTS[0])
    with pytest.raises(AssertionError, match="not resident"):
        table.evict(EXPERTS[0])


def test_a_table_without_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one slot"):
        SlotTable(num_slots=0, shape=SHAPE)
