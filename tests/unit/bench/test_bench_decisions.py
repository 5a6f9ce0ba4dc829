"""The flow that decisions are clocked on: steady, with as many waiting and running as asked for, for every policy."""

from __future__ import annotations

import pytest

from emoe.bench.decisions import DecisionSettings, Flow, Load, bench_decisions
from emoe.core.schedule.policies import POLICIES

LOAD = Load(num_queued=200, num_workers=5, num_running=4)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_queue_stays_about_as_long_as_asked_for(policy: str) -> None:
    flow = Flow(policy, LOAD, seed=0)
    for _ in range(8):
        flow.fill()
        assert flow.num_waiting >= LOAD.num_queued
        for _ in range(20):
            flow.turn()
    assert flow.num_waiting <= 2 * LOAD.num_queued


def test_each_policy_and_load_has_a_row() -> None:
    settings = DecisionSettings(policies=("fifo", "ontime"), loads=(LOAD,), decisions=50)
    said: list[str] = []
    report = bench_decisions(settings, say=said.append)
    assert [row.policy for row in report.rows] == ["fifo", "ontime"]
    assert all(
        0 < row.decision_p50_seconds <= row.decision_p99_seconds and row.bytes_per_queued > 0 for row in report.rows
    )
    assert len(said) == 2
