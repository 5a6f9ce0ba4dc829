"""Turns of tenants: nobody with something waiting is served much less, and nothing is lost or taken twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from emoe.core.schedule.cluster import Cluster, WorkerReport
from emoe.core.schedule.costs import FIRST_GUESS
from emoe.core.schedule.counters import MAX_TENANTS_KEPT
from emoe.core.schedule.fair import ANSWER_TOKEN_WEIGHT, MAX_LOOKS, FairAdmission
from emoe.core.schedule.policies import make_policy
from emoe.core.schedule.request import QueuedRequest


def request(request_id: str, tenant: str, *, num_tokens: int = 10, arrived_seconds: float = 0.0) -> QueuedRequest:
    return QueuedRequest(
        request_id=request_id,
        task="qa",
        tenant=tenant,
        arrived_seconds=arrived_seconds,
        num_prompt_tokens=num_tokens,
        num_expected_tokens=num_tokens,
        max_tokens=2 * num_tokens,
    )


def roomy(max_tokens: int = 10_000) -> Cluster:
    cluster = Cluster()
    cluster.update(
        WorkerReport(worker_id="w", free_sequences=10_000, max_tokens_per_sequence=max_tokens, costs=FIRST_GUESS)
    )
    return cluster


def fair() -> FairAdmission:
    return FairAdmission(lambda: make_policy("fifo", fair=False))


def taken(policy: FairAdmission, num: int) -> list[QueuedRequest]:
    cluster = roomy()
    admissions = [policy.pick(cluster, 0.0) for _ in range(num)]
    return [admission.request for admission in admissions if admission is not None]


def test_one_tenant_has_the_policys_own_order() -> None:
    policy = fair()
    for name, arrived in (("late", 2.0), ("early", 1.0)):
        policy.add(request(name, "a", arrived_seconds=arrived), 2.0)
    assert [one.request_id for one in taken(policy, 3)] == ["early", "late"]


def test_a_tenant_with_many_requests_does_not_keep_another_waiting() -> None:
    policy = fair()
    for number in range(100):
        policy.add(request(f"a{number}", "a"), 0.0)
    policy.add(request("b", "b", arrived_seconds=1.0), 1.0)
    assert "b" in [one.request_id for one in taken(policy, 2)]


def test_idle_time_is_not_saved_up() -> None:
    policy = fair()
    for number in range(20):
        policy.add(request(f"a{number}", "a"), 0.0)
    taken(policy, 10)
    for number in range(10):
        policy.add(request(f"b{number}", "b"), 0.0)
    assert sorted(one.tenant for one in taken(policy, 4)) == ["a", "a", "b", "b"]


def test_a_tenant_that_nobody_waited_beside_is_not_kept_waiting_by_one_that_is_new() -> None:
    policy = fair()
    for number in range(20):
        policy.add(request(f"a{number}", "a"), 0.0)
        taken(policy, 1)
    for name in ("b0", "b1", "a20", "a21"):
        policy.add(request(name, name[0]), 0.0)
    assert sorted(one.tenant for one in taken(policy, 2)) == ["a", "b"]


def test_every_tenant_gets_a_look_where_the_least_served_have_nothing_that_fits() -> None:
    policy, cluster = fair(), roomy(max_tokens=100)
    num_tenants = 10 * MAX_LOOKS
    for number in range(num_tenants):
        policy.add(request(f"long{number}", f"tenant{number:02}", num_tokens=1000), 0.0)
    policy.add(request("short", f"tenant{num_tenants - 1}"), 0.0)

    picks = [policy.pick(cluster, 0.0) for _ in range(num_tenants)]

    assert [one.request.request_id for one in picks if one is not None] == ["short"]


def test_looks_go_round_and_the_least_served_have_theirs_each_time() -> None:
    """Many picks in vain have gone anywhere; then there is room for all, and the order is that of the counters."""
    policy, small = fair(), roomy(max_tokens=100)
    for number in range(3 * MAX_LOOKS):
        policy.add(request(f"long{number}", f"tenant{number:02}", num_tokens=1000), 0.0)
    assert [policy.pick(small, 0.0) for _ in range(50)] == [None] * 50
    assert [one.tenant for one in taken(policy, 3)] == ["tenant00", "tenant01", "tenant02"]


@given(
    sizes=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 500)), min_size=30, max_size=60),
    num_taken=st.integers(1, 60),
)
def test_tenants_that_wait_have_been_served_alike_up_to_one_request(
    sizes: list[tuple[str, int]], num_taken: int
) -> None:
    policy = fair()
    waiting = dict.fromkeys("abc", 0)
    for number, (tenant, num_tokens) in enumerate(sizes):
        policy.add(request(str(number), tenant, num_tokens=num_tokens), 0.0)
        waiting[tenant] += 1
    served = dict.fromkeys(waiting, 0.0)
    for one in taken(policy, num_taken):
        served[one.tenant] += one.num_prompt_tokens + ANSWER_TOKEN_WEIGHT * one.num_expected_tokens
        waiting[one.tenant] -= 1
    backlogged = [served[tenant] for tenant, num in waiting.items() if num]
    largest = max(num_tokens for _, num_tokens in sizes) * (1 + ANSWER_TOKEN_WEIGHT)
    assert not backlogged or max(backlogged) - min(backlogged) <= largest


@given(steps=st.lists(st.tuples(st.sampled_from(["add", "discard", "pick"]), st.integers(0, 9)), max_size=80))
def test_whatever_the_order_nothing_is_lost_or_taken_twice(steps: list[tuple[str, int]]) -> None:
    policy, cluster = fair(), roomy()
    waiting: set[str] = set()
    for step, number in steps:
        name = str(number)
        if step == "add":
            policy.add(request(name, f"tenant{number % 3}"), 0.0)
            waiting.add(name)
        elif step == "discard":
            policy.discard(name)
            waiting.discard(name)
        else:
            admission = policy.pick(cluster, 0.0)
            assert (admission is None) == (not waiting)
            if admission is not None:
                waiting.remove(admission.request.request_id)
        assert len(policy) == len(waiting)


def test_what_is_kept_of_tenants_that_left_is_bounded() -> None:
    policy = fair()
    for number in range(2 * MAX_TENANTS_KEPT + 10):
        policy.add(request("one", f"tenant{number}"), 0.0)
        policy.discard("one")
    assert policy.num_tenants_kept <= MAX_TENANTS_KEPT
