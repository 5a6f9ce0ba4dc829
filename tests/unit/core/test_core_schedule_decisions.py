"""The decision record: bounded, newest first, found by what a reader knows."""

from __future__ import annotations

import pytest

from emoe.core.schedule.decisions import Decision, DecisionFilter, DecisionKind, DecisionLog


def decision(request_id: str = "a", **fields: object) -> Decision:
    return Decision(
        **{
            "at_seconds": 0.0,
            "kind": DecisionKind.ADMITTED,
            "request_id": request_id,
            "task": "qa",
            "tenant": "",
            "reason": "",
            "age_seconds": 0.0,
            "num_waiting": 0,
            "num_workers": 0,
            **fields,
        }
    )


def test_the_oldest_are_forgotten_and_counted() -> None:
    log = DecisionLog(max_decisions=2)
    for name in "abc":
        log.record(decision(name))
    assert [one.request_id for one in log.latest(10)] == ["c", "b"]
    assert [one.request_id for one in log.latest(1)] == ["c"]
    assert (len(log), log.num_forgotten) == (2, 1)


@pytest.mark.parametrize(
    ("only", "found"),
    [
        pytest.param(DecisionFilter(), True, id="all"),
        pytest.param(DecisionFilter(request_id="mine"), True, id="request without its number"),
        pytest.param(DecisionFilter(request_id="mine #2"), True, id="request"),
        pytest.param(DecisionFilter(request_id="min"), False, id="part of a request's id"),
        pytest.param(DecisionFilter(worker_id="w-1"), True, id="worker without its address"),
        pytest.param(DecisionFilter(worker_id="w-1 at h:1"), True, id="worker"),
        pytest.param(DecisionFilter(worker_id="w"), False, id="part of a worker's id"),
        pytest.param(DecisionFilter(task="qa", tenant="blue", kind=DecisionKind.DONE), True, id="several"),
        pytest.param(DecisionFilter(task="qa", tenant="red"), False, id="one of several"),
        pytest.param(DecisionFilter(kind=DecisionKind.FAILED), False, id="kind"),
    ],
)
def test_a_filter_takes_what_has_all_that_it_says(only: DecisionFilter, found: bool) -> None:
    one = decision("mine #2", worker_id="w-1 at h:1", tenant="blue", kind=DecisionKind.DONE)
    assert only.takes(one) is found
