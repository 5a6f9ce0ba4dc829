"""Who was put behind others, and why, is in the desk's record; where none is kept no policy is asked for it."""

from __future__ import annotations

import pytest

from emoe.core.schedule.cluster import Cluster, WorkerReport
from emoe.core.schedule.costs import StepCosts
from emoe.core.schedule.decisions import Decision, DecisionKind, DecisionLog
from emoe.core.schedule.desk import Desk
from emoe.core.schedule.policies import POLICIES, make_policy
from emoe.core.schedule.request import QueuedRequest

COSTS = StepCosts(base_seconds=0.0, prompt_token_seconds=1e-3, sequence_seconds=1e-3, step_tokens=100)
"""A prompt of 1,000 tokens takes a second."""

DEFERRED, ADMITTED = DecisionKind.DEFERRED, DecisionKind.ADMITTED


def request(request_id: str, num_tokens: int = 10, *, tenant: str = "a", ttft: float | None = None) -> QueuedRequest:
    return QueuedRequest(
        request_id=request_id,
        task="qa",
        tenant=tenant,
        arrived_seconds=0.0,
        num_prompt_tokens=num_tokens,
        num_expected_tokens=10,
        max_tokens=10,
        ttft_seconds=ttft,
    )


class Record:
    def __init__(self, policy: str, *, fair: bool = True, num_workers: int = 1) -> None:
        cluster = Cluster()
        for number in range(num_workers):
            cluster.update(
                WorkerReport(worker_id=f"w{number}", free_sequences=1, max_tokens_per_sequence=100_000, costs=COSTS)
            )
        self._log = DecisionLog(max_decisions=100)
        self.desk = Desk(
            policy=make_policy(policy, fair=fair),
            cluster=cluster,
            max_requests=100,
            max_bytes=1,
            decisions=self._log,
        )

    def arrive(self, *requests: QueuedRequest) -> None:
        for one in requests:
            assert self.desk.arrive(one, 0.0) == ()

    def decisions(self, request_id: str) -> list[Decision]:
        """Oldest first."""
        return [one for one in reversed(self._log.latest(100)) if one.request_id == request_id]

    def kinds(self, request_id: str) -> list[DecisionKind]:
        return [one.kind for one in self.decisions(request_id)]


@pytest.mark.parametrize("fair", [True, False], ids=["fair", "one queue"])
def test_the_longest_gave_way_to_what_can_be_in_time(fair: bool) -> None:
    record = Record("ontime", fair=fair)
    record.arrive(request("long", 900, ttft=1.0), *(request(f"short{number}", 300, ttft=1.1) for number in range(3)))
    (admission,) = record.desk.admit(0.05)
    (deferred,) = record.decisions("long")
    assert admission.request.request_id == "short0"
    assert (deferred.kind, deferred.at_seconds, deferred.age_seconds, deferred.due_seconds) == (
        DEFERRED,
        0.05,
        0.05,
        1.0,
    )
    assert deferred.reason.startswith("gave way")
    assert deferred.num_waiting == 4
    assert record.kinds("short0") == [ADMITTED]


@pytest.mark.parametrize("policy", ["ontime", "emoe"])
@pytest.mark.parametrize("now", [0.0, 9.0], ids=["too long", "overdue"])
def test_one_that_cannot_be_in_time_any_more_is_late_once_and_then_admitted(policy: str, now: float) -> None:
    record = Record(policy)
    record.arrive(request("lost", 1000, ttft=0.5))
    record.desk.admit(now)
    record.desk.admit(now)
    *_, deferred, admitted = record.decisions("lost")
    assert (deferred.kind, admitted.kind) == (DEFERRED, ADMITTED)
    assert deferred.reason.startswith("late")
    assert sum(one.reason == deferred.reason for one in record.decisions("lost")) == 1


def test_one_that_gave_way_and_then_is_late_is_in_the_record_twice() -> None:
    record = Record("ontime")
    record.arrive(request("long", 900, ttft=1.0), *(request(f"short{number}", 300, ttft=1.1) for number in range(3)))
    record.desk.admit(0.0)
    record.desk.first_token("short0", 2.0)
    record.desk.end("short0", 2.0, DecisionKind.DONE)
    assert record.desk.admit(2.0)
    assert [one.reason.split()[0] for one in record.decisions("long")][:2] == ["gave", "late:"]


def test_each_tenants_queue_tells() -> None:
    record = Record("ontime", num_workers=3)
    names = [f"{tenant}{number}" for tenant in "abc" for number in range(2)]
    record.arrive(*(request(name, 1000, tenant=name[0], ttft=0.5) for name in names))
    record.desk.admit(9.0)
    assert [record.kinds(name)[0] for name in names] == [DEFERRED] * len(names)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_nobody_is_told_where_no_record_is_kept(policy: str) -> None:
    made = make_policy(policy)
    Desk(policy=made, cluster=Cluster(), max_requests=1, max_bytes=1)
    assert made.on_deferred is None


@pytest.mark.parametrize("policy", ["fifo", "shortest", "edf"])
def test_policies_that_put_nothing_behind_say_nothing(policy: str) -> None:
    record = Record(policy, num_workers=2)
    record.arrive(request("lost", 1000, ttft=0.5), request("can", 10))
    record.desk.admit(9.0)
    assert record.kinds("lost") == [ADMITTED]
