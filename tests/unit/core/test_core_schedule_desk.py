"""The desk: bounds, who gives way, retry delays, and that each request leaves in exactly one way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emoe.core.schedule.cluster import Cluster, WorkerReport
from emoe.core.schedule.costs import FIRST_GUESS
from emoe.core.schedule.decisions import ENDS, DecisionKind, DecisionLog
from emoe.core.schedule.desk import FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS, Desk
from emoe.core.schedule.policies import POLICIES, make_policy
from emoe.core.schedule.request import QueuedRequest


def request(request_id: str, **fields: object) -> QueuedRequest:
    return QueuedRequest(
        **{
            "request_id": request_id,
            "task": "qa",
            "arrived_seconds": 0.0,
            "num_prompt_tokens": 10,
            "num_expected_tokens": 20,
            "max_tokens": 30,
            "size_bytes": 100,
            **fields,
        }
    )


def worker(free_sequences: int, worker_id: str = "w") -> WorkerReport:
    return WorkerReport(
        worker_id=worker_id, free_sequences=free_sequences, max_tokens_per_sequence=1000, costs=FIRST_GUESS
    )


def open_desk(
    *, policy: str = "fifo", max_requests: int = 3, max_bytes: int = 10_000, free_sequences: int = 0
) -> tuple[Desk, Cluster, DecisionLog]:
    cluster, log = Cluster(), DecisionLog(max_decisions=10_000)
    if free_sequences:
        cluster.update(worker(free_sequences))
    desk = Desk(
        policy=make_policy(policy), cluster=cluster, max_requests=max_requests, max_bytes=max_bytes, decisions=log
    )
    return desk, cluster, log


def test_a_newcomer_to_a_full_queue_is_refused_while_no_tenant_has_more() -> None:
    desk, _, _ = open_desk(max_requests=2)
    assert [desk.arrive(request(name, tenant=name), 0.0) for name in "ab"] == [(), ()]
    (refused,) = desk.arrive(request("c", tenant="c"), 0.0)
    assert refused.request_id == "c"
    assert "2 requests are waiting" in refused.reason
    assert desk.num_waiting == 2


def test_the_newest_of_the_largest_tenant_gives_way() -> None:
    desk, _, _ = open_desk(max_requests=3)
    for name in ("a1", "b1", "a2"):
        desk.arrive(request(name, tenant=name[0]), 0.0)
    assert [refused.request_id for refused in desk.arrive(request("c1", tenant="c"), 0.0)] == ["a2"]
    assert "c1" in desk
    assert "a2" not in desk


def test_bytes_count_like_places() -> None:
    """One large request weighs more than two small ones of another tenant."""
    desk, _, _ = open_desk(max_requests=100, max_bytes=1000)
    desk.arrive(request("large", tenant="a", size_bytes=800), 0.0)
    desk.arrive(request("small", tenant="b", size_bytes=100), 0.0)
    assert [refused.request_id for refused in desk.arrive(request("next", tenant="b", size_bytes=150), 0.0)] == [
        "large"
    ]
    assert desk.num_waiting_bytes == 250


def test_what_was_queued_again_gives_way_to_nobody_and_passes_the_bounds() -> None:
    desk, cluster, _ = open_desk(max_requests=1, free_sequences=2)
    for name in ("a1", "a2"):
        desk.arrive(request(name, tenant="a"), 0.0)
        desk.admit(0.0)
    cluster.remove("w")
    for name in ("a1", "a2"):
        desk.requeue(request(name, tenant="a"), 1.0)
    assert desk.num_waiting == 2
    assert [refused.request_id for refused in desk.arrive(request("b1", tenant="b"), 1.0)] == ["b1"]


def test_an_empty_queue_takes_one_of_any_size() -> None:
    desk, _, _ = open_desk(max_bytes=10)
    assert desk.arrive(request("large"), 0.0) == ()


def test_the_retry_delay_is_the_waiting_tokens_at_the_rate_of_a_busy_cluster() -> None:
    desk, _, _ = open_desk(max_requests=2, free_sequences=1)
    assert desk.retry_after_seconds(0.0) == FIRST_RETRY_SECONDS
    for name in "abc":
        desk.arrive(request(name), 0.0)
        desk.admit(0.0)
    desk.first_token("a", 0.0)
    for second in range(1, 11):
        desk.progressed("a", 6 * second, float(second))

    (refused,) = desk.arrive(request("d"), 10.0)

    # 10 of the prompt and 60 of the answer in 10 seconds; two wait with 30 each. Older tokens count for a little less.
    assert refused.retry_after_seconds == pytest.approx(60 / 7, rel=0.1)


def test_an_idle_clusters_pace_does_not_lengthen_the_retry_delay() -> None:
    desk, _, _ = open_desk(max_requests=2, free_sequences=1)
    desk.arrive(request("lonely"), 0.0)
    desk.admit(0.0)
    desk.first_token("lonely", 0.0)
    desk.progressed("lonely", 20, 1000.0)
    desk.end("lonely", 1000.0, DecisionKind.DONE)
    assert desk.retry_after_seconds(1000.0) == FIRST_RETRY_SECONDS


def test_the_retry_delay_has_an_upper_bound() -> None:
    desk, _, _ = open_desk(max_requests=2, free_sequences=1)
    for name in "abc":
        desk.arrive(request(name), 0.0)
        desk.admit(0.0)
    desk.first_token("a", 1000.0)
    assert desk.retry_after_seconds(1000.0) == MAX_RETRY_SECONDS


def test_ending_twice_is_no_error_and_leaves_one_record() -> None:
    desk, _, log = open_desk()
    desk.arrive(request("a"), 0.0)
    desk.end("a", 1.0, DecisionKind.CANCELLED, reason="the client left")
    desk.end("a", 2.0, DecisionKind.DONE)
    assert [one.kind for one in log.latest(10)] == [DecisionKind.CANCELLED]
    assert desk.num_entries == 0


def test_a_request_that_leaves_the_queue_is_not_admitted() -> None:
    desk, cluster, _ = open_desk()
    for name in "ab":
        desk.arrive(request(name), 0.0)
    desk.end("a", 1.0, DecisionKind.EXPIRED)
    cluster.update(worker(5))
    assert [admission.request.request_id for admission in desk.admit(2.0)] == ["b"]


def test_an_admission_is_recorded_with_what_was_foretold() -> None:
    desk, _, log = open_desk(free_sequences=1)
    desk.arrive(request("a", ttft_seconds=0.5, tenant="t"), 0.0)
    (admission,) = desk.admit(0.25)
    (decision,) = log.latest(1)
    assert (decision.kind, decision.worker_id, decision.tenant) == (DecisionKind.ADMITTED, "w", "t")
    assert (decision.age_seconds, decision.due_seconds) == (0.25, 0.5)
    assert decision.predicted_ttft_seconds == admission.predicted_ttft_seconds > 0.25
    assert (decision.num_waiting, decision.num_workers, decision.reason) == (0, 1, admission.reason)


HAPPENINGS = st.lists(
    st.tuples(
        st.sampled_from(["arrive", "first", "progress", "end", "requeue", "join", "leave", "report"]),
        st.integers(0, 7),
        st.sampled_from([DecisionKind.DONE, DecisionKind.CANCELLED, DecisionKind.EXPIRED, DecisionKind.FAILED]),
    ),
    max_size=80,
)


@given(happenings=HAPPENINGS, policy=st.sampled_from(sorted(POLICIES)))
def test_every_request_leaves_in_exactly_one_way_and_nothing_stays_behind(
    happenings: list[tuple[str, int, DecisionKind]], policy: str
) -> None:
    desk, cluster, log = open_desk(policy=policy, max_requests=4, max_bytes=1000, free_sequences=2)
    known: dict[str, QueuedRequest] = {}
    refused: set[str] = set()
    for step, (happening, which, kind) in enumerate(happenings):
        now = float(step)
        present = [name for name in known if name in desk]
        chosen = present[which % len(present)] if present else ""
        match happening:
            case "arrive":
                name = str(step)
                tokens = 10 ** (which % 4)
                known[name] = request(
                    name,
                    tenant=str(which % 3),
                    arrived_seconds=now,
                    num_prompt_tokens=tokens,
                    ttft_seconds=float(which) if which else None,
                    size_bytes=50 * which,
                )
                refused |= {one.request_id for one in desk.arrive(known[name], now)}
            case "first" if chosen:
                desk.first_token(chosen, now)
            case "progress" if chosen:
                desk.progressed(chosen, 10 * which, now)
            case "end" if chosen:
                desk.end(chosen, now, kind)
            case "requeue" if chosen and log_says_running(log, chosen):
                desk.requeue(known[chosen], now)
            case "join" | "report":
                cluster.update(worker(which % 4, str(which % 3)))
            case "leave":
                cluster.remove(str(which % 3))
        desk.admit(now)
        assert desk.num_waiting + desk.num_running == sum(name in desk for name in known)
    for name in known:
        desk.end(name, 1e3, DecisionKind.CANCELLED)

    ends = [one.request_id for one in log.latest(10_000) if one.kind in ENDS or one.kind is DecisionKind.REFUSED]
    assert sorted(ends) == sorted(known)
    assert {one.request_id for one in log.latest(10_000) if one.kind is DecisionKind.REFUSED} == refused
    assert (desk.num_entries, desk.num_waiting_bytes, cluster.num_running) == (0, 0, 0)


def log_says_running(log: DecisionLog, request_id: str) -> bool:
    last = next((one.kind for one in log.latest(10_000) if one.request_id == request_id), None)
    return last is DecisionKind.ADMITTED
