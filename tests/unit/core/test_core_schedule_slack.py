"""Slack of running requests, kept as sums: the same as looking at each of them after every delay."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emoe.core.schedule.slack import SlackBook

EIGHTHS = st.integers(-4, 80).map(lambda eighths: eighths / 8)
"""Sums of them are exact."""
DEEDS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abcd"), st.one_of(EIGHTHS, st.just(math.inf))),
        st.tuples(st.just("drop"), st.sampled_from("abcd"), st.just(0.0)),
        st.tuples(st.just("delay"), st.just(""), st.integers(0, 16).map(lambda eighths: eighths / 8)),
    ),
    max_size=40,
)


@given(DEEDS)
def test_the_least_is_that_of_all_that_can_still_be_in_time(deeds: list[tuple[str, str, float]]) -> None:
    book, naive = SlackBook(), dict[str, float]()
    for deed, name, seconds in deeds:
        if deed == "put":
            book.put(name, seconds)
            naive.pop(name, None)
            if 0 <= seconds < math.inf:
                naive[name] = seconds
        elif deed == "drop":
            book.drop(name)
            naive.pop(name, None)
        else:
            book.delay(seconds)
            naive = {key: slack - seconds for key, slack in naive.items() if slack >= seconds}
        assert book.least_seconds() == min(naive.values(), default=math.inf)
        assert len(book) == len(naive)


def test_one_that_became_late_is_protected_again_once_it_is_in_time() -> None:
    book = SlackBook()
    book.put("a", 1.0)
    book.delay(2.0)
    assert book.least_seconds() == math.inf
    book.put("a", 3.0)
    assert book.least_seconds() == pytest.approx(3.0)
