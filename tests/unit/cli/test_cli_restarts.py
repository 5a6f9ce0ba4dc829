from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from emoe.cli.restarts import LONGEST_DELAY_SECONDS, RestartBudget, RestartLimit

LIMIT = RestartLimit(max_restarts=3, window_seconds=60)


def test_the_pause_doubles_while_restarts_follow_each_other() -> None:
    budget = RestartBudget(LIMIT)
    assert [budget.next_delay_seconds(now) for now in (0, 1, 2)] == [0.2, 0.4, 0.8]


def test_a_restart_beyond_the_limit_is_refused() -> None:
    budget = RestartBudget(LIMIT)
    for now in (0, 1, 2):
        budget.next_delay_seconds(now)
    assert budget.next_delay_seconds(3) is None


def test_an_old_restart_is_forgotten() -> None:
    budget = RestartBudget(LIMIT)
    for now in (0, 50, 55):
        budget.next_delay_seconds(now)
    assert budget.next_delay_seconds(60) is not None


@given(
    deaths=st.lists(st.floats(0, 1000, allow_nan=False), max_size=60).map(sorted),
    max_restarts=st.integers(1, 8),
    window=st.floats(0.1, 200),
)
def test_no_window_ever_holds_more_restarts_than_the_limit(
    deaths: list[float], max_restarts: int, window: float
) -> None:
    budget = RestartBudget(RestartLimit(max_restarts=max_restarts, window_seconds=window))
    delays = [(now, budget.next_delay_seconds(now)) for now in deaths]
    granted = [now for now, delay in delays if delay is not None]
    assert all(
        sum(0 <= later - now < window for later in granted[index:]) <= max_restarts for index, now in enumerate(granted)
    )
    assert all(0 < delay <= LONGEST_DELAY_SECONDS for _, delay in delays if delay is not None)
