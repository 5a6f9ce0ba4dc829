"""How many tokens an answer that runs is still expected to have: eMoE's G_i, corrected as it grows."""

from __future__ import annotations

from collections.abc import Callable

from emoe.core.schedule.costs import FIRST_GUESS
from emoe.core.schedule.load import WorkerLoad, WorkerReport
from emoe.core.schedule.request import QueuedRequest
from emoe.core.schedule.running import Running
from emoe.core.schedule.table import WorkerTable


def running(*, expected_rest: Callable[[int], float] | None = None, max_tokens: int = 1000) -> Running:
    request = QueuedRequest(
        request_id="one",
        task="qa",
        arrived_seconds=0.0,
        num_prompt_tokens=10,
        num_expected_tokens=100,
        max_tokens=max_tokens,
        expected_rest=expected_rest,
    )
    report = WorkerReport(worker_id="w", free_sequences=1, max_tokens_per_sequence=2000, costs=FIRST_GUESS)
    table = WorkerTable()
    return Running(request, WorkerLoad(report, table, table.append()))


def test_what_is_left_falls_with_each_token() -> None:
    one = running()
    assert one.num_left == 100
    assert one.progressed(30) == 30
    assert one.num_left == 70


def test_an_answer_longer_than_foretold_goes_on_for_a_twentieth_more() -> None:
    one = running()
    one.progressed(100)
    assert one.num_left == 5


def test_its_tasks_longer_answers_say_how_it_goes_on() -> None:
    one = running(expected_rest=lambda num_tokens: 2.0 * num_tokens)
    one.progressed(50)
    assert one.num_left == 50
    one.progressed(120)
    assert one.num_left == 240


def test_it_is_not_expected_beyond_its_limit() -> None:
    one = running(expected_rest=lambda num_tokens: 2.0 * num_tokens, max_tokens=130)
    one.progressed(120)
    assert one.num_left == 10
