"""The order of what waits: the same as sorting all of it anew, whatever came, left and no longer fits."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from emoe.core.schedule.request import QueuedRequest
from emoe.core.schedule.waiting import SPARE_ENTRIES, Waiting, by_arrival


def request(name: str, arrived: float, tokens: int = 1) -> QueuedRequest:
    return QueuedRequest(
        request_id=name,
        task="qa",
        arrived_seconds=arrived,
        num_prompt_tokens=tokens,
        num_expected_tokens=1,
        max_tokens=0,
    )


class WaitingMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.waiting = Waiting(by_arrival)
        self.naive: dict[str, QueuedRequest] = {}
        self.limits: tuple[int, ...] = (10,)

    @rule(name=st.integers(0, 30), arrived=st.integers(0, 9), tokens=st.integers(1, 30))
    def add(self, name: int, arrived: int, tokens: int) -> None:
        one = request(str(name), arrived + name / 100, tokens)
        self.waiting.add(one)
        self.naive[one.request_id] = one

    @rule(name=st.integers(0, 30))
    def discard(self, name: int) -> None:
        assert self.waiting.discard(str(name)) == self.naive.pop(str(name), None)

    @rule(limits=st.sets(st.sampled_from([5, 10, 20, 40]), min_size=1))
    def see_other_workers(self, limits: set[int]) -> None:
        self.limits = tuple(sorted(limits))

    @rule(key=st.integers(0, 5))
    def take_until(self, key: int) -> None:
        taken = {one.request_id for one in self.waiting.take_until(key)}
        assert taken == {name for name, one in self.naive.items() if one.arrived_seconds < key}
        for name in taken:
            del self.naive[name]

    @invariant()
    def the_first_are_those_of_a_sorted_list(self) -> None:
        assert len(self.waiting) == len(self.naive)
        assert bool(self.waiting) == bool(self.naive)
        for most in (0, *self.limits):
            fitting = sorted((one for one in self.naive.values() if one.num_kv_tokens <= most), key=by_arrival)
            assert self.waiting.first(self.limits, most) == (fitting[0] if fitting else None)
            found = [entry[-1] for entry in self.waiting.first_ones(self.limits, most, 3)]
            assert found == fitting[: len(found)]
            assert bool(found) == bool(fitting)


TestWaiting = WaitingMachine.TestCase
TestWaiting.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_memory_is_that_of_what_waits_however_many_came_and_left() -> None:
    waiting = Waiting(by_arrival)
    for number in range(5000):
        waiting.add(request(f"r{number}", number))
        if number >= 10:
            waiting.discard(f"r{number}")
    assert waiting.num_entries <= 2 * len(waiting) + SPARE_ENTRIES + 1


def test_several_are_given_in_order() -> None:
    waiting = Waiting(by_arrival)
    for number in (5, 3, 8, 1, 9, 2):
        waiting.add(request(f"r{number}", number, tokens=number))
    found = [entry[-1].request_id for entry in waiting.first_ones((4, 100), 100, 4)]
    assert found == ["r1", "r2", "r3", "r5"]
    assert len(waiting) == 6
