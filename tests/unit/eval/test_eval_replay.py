"""Traces are cut, scaled and matched to rows; outcomes become rows whose counts add up."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from emoe.core.errors import InvalidRequestError
from emoe.eval.replay import ALL, Outcome, summarise
from emoe.eval.rows import Row
from emoe.eval.trace import Window, read_arrivals

HEADER = "id,arrival_s,task,corpus_id,prompt_tokens,output_tokens\n"
ROWS = {"qa": [Row(task="qa", prompt=f"Question {n}?", response="Yes.", row_id=f"qa-{n}") for n in range(4)]}


def write_trace(folder: Path, lines: str, *, header: str = HEADER) -> Path:
    path = folder / "trace.csv.gz"
    path.write_bytes(gzip.compress((header + lines).encode()))
    return path


def test_a_window_of_a_trace_begins_at_zero_and_takes_longer_at_a_lower_speed(tmp_path: Path) -> None:
    trace = write_trace(tmp_path, "0,1.0,qa,qa-0,9,5\n1,4.0,qa,qa-1,9,500\n2,6.0,qa,qa-2,9,5\n3,9.0,qa,qa-3,9,5\n")
    arrivals = read_arrivals(trace, ROWS, Window(begin_seconds=2.0, num_requests=2, speed=0.5, max_tokens=64))
    assert [(arrival.at_seconds, arrival.row.row_id) for arrival in arrivals] == [(4.0, "qa-1"), (8.0, "qa-2")]
    assert [arrival.max_tokens for arrival in arrivals] == [64, 5]


def test_requests_whose_prompt_the_data_lacks_are_left_out(tmp_path: Path) -> None:
    trace = write_trace(tmp_path, "0,1.0,qa,qa-9,9,5\n1,4.0,qa,qa-1,9,5\n")
    assert [arrival.row.row_id for arrival in read_arrivals(trace, ROWS, Window())] == ["qa-1"]


@pytest.mark.parametrize(
    ("lines", "header", "message"),
    [
        pytest.param("0,soon,qa,qa-0,9,5\n", HEADER, "line 2", id="a time that is no number"),
        pytest.param("0,1.0,Q A,qa-0,9,5\n", HEADER, "task name", id="a task that is no name"),
        pytest.param("0,1.0,qa,other,9,5\n", HEADER, "corpus_id", id="no row of the data"),
        pytest.param("0,1.0\n", "id,arrival_s\n", "no column", id="columns missing"),
    ],
)
def test_a_trace_that_cannot_be_replayed_says_why(tmp_path: Path, lines: str, header: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        read_arrivals(write_trace(tmp_path, lines, header=header), ROWS, Window())


def test_rows_of_tasks_and_windows_add_up_to_that_of_all() -> None:
    outcomes = [
        Outcome(
            task="qa" if number % 2 else "code",
            at_seconds=float(number),
            refusal="RESOURCE_EXHAUSTED: full" if number == 3 else "",
            ttft_seconds=0.1 * number,
            num_completion_tokens=10,
            num_expert_hits=number,
            num_expert_choices=10,
        )
        for number in range(8)
    ]
    rows = list(
        summarise(
            outcomes,
            strategy="emoe",
            resident_ratio=0.25,
            wall_seconds=10.0,
            num_windows=4,
            bytes_moved=7,
            experts_loaded=1,
        )
    )
    total, by_task = rows[0], [row for row in rows if row.task != ALL]
    in_windows = [row for row in rows if row.window_seconds is not None]
    assert (total.num_requests, total.num_failed, total.bytes_moved, total.tokens_per_second) == (8, 1, 7, 7.0)
    assert total.hit_ratio == pytest.approx((0 + 1 + 2 + 4 + 5 + 6 + 7) / 70)
    assert sum(row.num_requests for row in by_task) == sum(row.num_requests for row in in_windows) == 8
    assert {row.task: row.num_failed for row in by_task} == {"code": 0, "qa": 1}
