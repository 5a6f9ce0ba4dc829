"""Progress: now and then, with what is left; and how lengths are summed up."""

from __future__ import annotations

import pytest

from emoe.store.profile import Lengths
from emoe.train.lengths import measure_lengths
from emoe.train.progress import Progress, format_seconds


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_comes_every_two_seconds_and_at_the_end() -> None:
    clock, said = Clock(), list[str]()
    progress = Progress("rows", 10, say=said.append, clock=clock)
    for _ in range(10):
        clock.now += 0.5
        progress.advance(1)
    assert said == ["rows: 4 of 10, 3 s left", "rows: 8 of 10, 1 s left", "rows: 10 of 10"]


def test_what_an_earlier_run_did_counts_as_done_but_not_as_speed() -> None:
    clock, said = Clock(), list[str]()
    progress = Progress("rows", 100, num_kept=90, say=said.append, clock=clock)
    clock.now += 4.0
    progress.advance(2)
    assert said == ["rows: 90 of 100 are kept from before", "rows: 92 of 100, 16 s left"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.4, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (7501, "2 h 5 min")]
)
def test_times_are_written_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_lengths_are_mean_and_percentiles() -> None:
    assert measure_lengths(range(1, 102)) == Lengths(mean=51.0, p50=51.0, p90=91.0, p99=100.0)
    with pytest.raises(ValueError, match="no length"):
        measure_lengths([])
