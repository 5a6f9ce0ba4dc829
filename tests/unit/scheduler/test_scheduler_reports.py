"""What workers, loader and scheduler tell each other, as typed values."""

from __future__ import annotations

import math

import pytest

from emoe.core.schedule.costs import FIRST_GUESS, StepCosts
from emoe.scheduler.client import TaskLoad, TaskReport, WorkerTasks, parse_worker, report_to_proto
from emoe.v1 import loader_pb2

LOAD = TaskLoad(
    task="qa", num_running=1, num_waiting=0, num_prompt_tokens=2, num_expected_tokens=3, num_waiting_tokens=0
)


def test_a_worker_that_has_not_measured_has_no_costs() -> None:
    reported = parse_worker(loader_pb2.WorkerState(worker_id="w"))
    assert (reported.costs, reported.coverage) == (None, None)


def test_costs_come_as_measured() -> None:
    measured = loader_pb2.StepCosts(
        base_seconds=0.5, prompt_token_seconds=0.25, sequence_seconds=0.125, step_tokens=64, missed_token_seconds=2.0
    )
    assert parse_worker(loader_pb2.WorkerState(step_costs=measured)).costs == StepCosts(
        base_seconds=0.5, prompt_token_seconds=0.25, sequence_seconds=0.125, step_tokens=64, missed_token_seconds=2.0
    )


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_costs_that_no_step_has_are_taken_as_none(seconds: float) -> None:
    state = loader_pb2.WorkerState(step_costs=loader_pb2.StepCosts(base_seconds=seconds, sequence_seconds=1.0))
    costs = parse_worker(state).costs
    assert costs is not None
    assert (costs.base_seconds, costs.sequence_seconds, costs.step_tokens) == (0.0, 1.0, FIRST_GUESS.step_tokens)


def test_a_report_says_what_runs_where_and_what_came_lately() -> None:
    report = task_report(recent=0.5)
    message = report_to_proto("s", report)
    (worker,) = message.workers
    assert (message.scheduler_id, message.num_prompts, message.loads[0].task) == ("s", 4, "qa")
    assert (worker.worker_id, worker.running[0].num_expected_tokens, dict(worker.recent)) == ("w", 3, {"qa": 0.5})


def test_time_alone_is_no_reason_to_report_again() -> None:
    assert task_report(recent=0.5).says_the_same(task_report(recent=0.4))
    assert not task_report(recent=0.5).says_the_same(None)
    assert not task_report(recent=0.5, num_prompts=5).says_the_same(task_report(recent=0.5))


def task_report(*, recent: float, num_prompts: int = 4) -> TaskReport:
    worker = WorkerTasks(worker_id="w", running=(LOAD,), recent={"qa": recent})
    return TaskReport(loads=(LOAD,), workers=(worker,), num_prompts=num_prompts)
