"""Work by the time it is due: an excess is found where there is one, and the longest of it is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emoe.core.schedule.buckets import NUM_BUCKETS, WIDTH_SECONDS, Capacity, DueBuckets

JOBS = st.lists(st.tuples(st.integers(0, NUM_BUCKETS - 2), st.integers(1, 500), st.booleans()), min_size=1, max_size=12)


def excess(buckets: DueBuckets, now: float = 0.0, *, rate: float = 100.0, busy: float = 0.0) -> str | None:
    taken = buckets.take_excess(now, Capacity(tokens_per_second=rate, busy_tokens=busy), most=1)
    return taken[0] if taken else None


@given(JOBS)
def test_the_longest_due_until_the_first_excess_is_named(jobs: list[tuple[int, int, bool]]) -> None:
    buckets = DueBuckets()
    stays: list[tuple[int, int, str]] = []
    for number, (bucket, tokens, leaves) in enumerate(jobs):
        buckets.add(str(number), (bucket + 0.5) * WIDTH_SECONDS, tokens)
        if leaves:
            buckets.discard(str(number))
        else:
            stays.append((bucket, tokens, str(number)))
    longest = None
    for bucket in sorted({place[0] for place in stays}):
        due = [place for place in stays if place[0] <= bucket]
        if sum(tokens for _, tokens, _ in due) > 100 * (bucket + 1) * WIDTH_SECONDS:
            longest = max(tokens for _, tokens, _ in due)
            break
    named = excess(buckets)
    assert (None if named is None else next(tokens for _, tokens, name in stays if name == named)) == longest


@given(JOBS)
def test_several_at_once_are_those_of_one_look_after_another(jobs: list[tuple[int, int, bool]]) -> None:
    at_once, singly = DueBuckets(), DueBuckets()
    for number, (bucket, tokens, _) in enumerate(jobs):
        for buckets in (at_once, singly):
            buckets.add(str(number), (bucket + 0.5) * WIDTH_SECONDS, tokens)
    named = at_once.take_excess(0.0, Capacity(tokens_per_second=100.0), most=5)
    assert named == [name for name in (excess(singly) for _ in range(5)) if name is not None]
    assert len(at_once) == len(singly) == len(jobs) - len(named)


def test_what_runs_already_leaves_less_time_for_the_rest() -> None:
    buckets = DueBuckets()
    buckets.add("a", 1.0, 80)
    assert excess(buckets) is None
    assert excess(buckets, busy=50) == "a"


def test_what_is_far_away_comes_in_as_time_passes_and_what_is_overdue_leaves() -> None:
    buckets = DueBuckets()
    buckets.add("far", 2 * NUM_BUCKETS * WIDTH_SECONDS, 10_000)
    buckets.add("near", 0.5, 10)
    assert excess(buckets) is None
    assert buckets.take_overdue(1.0) == ["near"]
    assert buckets.take_overdue(1.5 * NUM_BUCKETS * WIDTH_SECONDS) == []
    assert len(buckets) == 1
    assert excess(buckets, 1.5 * NUM_BUCKETS * WIDTH_SECONDS) == "far"


@pytest.mark.parametrize("pause", [0.01, 3.0, 1e4], ids=["short", "long", "beyond the ring"])
def test_nothing_is_lost_whatever_time_passes(pause: float) -> None:
    buckets, now, overdue = DueBuckets(), 0.0, list[str]()
    for number in range(200):
        now += pause
        buckets.add(str(number), now + number % 40, 5)
        overdue += buckets.take_overdue(now)
    overdue += buckets.take_overdue(now + 1e5)
    overdue += buckets.take_overdue(now + 2e5)
    assert sorted(overdue) == sorted(map(str, range(200)))
    assert len(buckets) == 0
