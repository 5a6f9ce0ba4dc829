"""Who gives way at a full queue, and that tables of tenants end with their requests."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from emoe.core.schedule.request import QueuedRequest
from emoe.core.schedule.shares import TenantShares

MAX_REQUESTS, MAX_BYTES = 10, 1000


def request(request_id: str, tenant: str, size_bytes: int = 0) -> QueuedRequest:
    return QueuedRequest(
        request_id=request_id,
        task="qa",
        tenant=tenant,
        arrived_seconds=0.0,
        num_prompt_tokens=1,
        num_expected_tokens=1,
        max_tokens=1,
        size_bytes=size_bytes,
    )


CHANGES = st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 300)), max_size=200)


@given(CHANGES)
def test_the_one_that_gives_way_is_the_newest_of_a_tenant_with_the_largest_share(
    changes: list[tuple[bool, int, int]],
) -> None:
    shares = TenantShares(max_requests=MAX_REQUESTS, max_bytes=MAX_BYTES)
    waiting: list[QueuedRequest] = []
    for step, (arrives, which, size) in enumerate(changes):
        if arrives or not waiting:
            waiting.append(request(str(step), str(which), size))
            shares.add(waiting[-1])
        else:
            shares.discard(waiting.pop(which % len(waiting)))
        check(shares, waiting, request("new", "stranger"))
        check(shares, waiting, request("new", str(which), size))
    for one in waiting:
        shares.discard(one)
    assert len(shares) == 0


def check(shares: TenantShares, waiting: list[QueuedRequest], newcomer: QueuedRequest) -> None:
    loser = shares.gives_way(newcomer)
    with_it = [*waiting, newcomer]
    largest = max(share(with_it, one.tenant) for one in with_it)
    assert share(with_it, loser.tenant) == largest
    if share(with_it, newcomer.tenant) == largest:
        assert loser is newcomer
    else:
        assert loser is [one for one in waiting if one.tenant == loser.tenant][-1]


def share(waiting: list[QueuedRequest], tenant: str) -> float:
    own = [one for one in waiting if one.tenant == tenant]
    return max(len(own) / MAX_REQUESTS, sum(one.size_bytes for one in own) / MAX_BYTES)


def test_names_made_up_by_clients_leave_nothing_behind() -> None:
    shares = TenantShares(max_requests=MAX_REQUESTS, max_bytes=MAX_BYTES)
    for index in range(10_000):
        one = request(str(index), f"tenant {index}")
        shares.add(one)
        shares.discard(one)
    assert len(shares) == 0
    assert shares.num_outdated < 100
