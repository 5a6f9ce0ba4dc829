"""What every policy keeps to: nothing is lost or taken twice, all goes where it fits; and what each has as its rule."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emoe.core.schedule.cluster import Cluster, WorkerReport
from emoe.core.schedule.costs import StepCosts
from emoe.core.schedule.policies import POLICIES, make_policy
from emoe.core.schedule.request import QueuedRequest

COSTS = StepCosts(base_seconds=0.01, prompt_token_seconds=1e-3, sequence_seconds=1e-3)
each_policy = pytest.mark.parametrize("name", POLICIES)

DEEDS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 90), st.sampled_from([None, 0.05, 0.5, 5.0])),
        st.tuples(st.just("discard"), st.integers(0, 99), st.none()),
        st.tuples(st.just("pick"), st.integers(0, 9), st.none()),
        st.tuples(st.just("first token"), st.integers(0, 9), st.none()),
        st.tuples(st.just("end"), st.integers(0, 9), st.none()),
        st.tuples(st.just("pass"), st.integers(1, 400), st.none()),
        st.tuples(st.just("leave"), st.integers(0, 2), st.none()),
    ),
    max_size=60,
)


def request(
    name: str,
    *,
    tokens: int = 10,
    arrived: float = 0.0,
    ttft: float | None = None,
    expected: int = 5,
    tpot: float | None = None,
    tenant: str = "",
) -> QueuedRequest:
    return QueuedRequest(
        request_id=name,
        task="qa",
        tenant=tenant,
        arrived_seconds=arrived,
        num_prompt_tokens=tokens,
        num_expected_tokens=expected,
        max_tokens=10,
        ttft_seconds=ttft,
        tpot_seconds=tpot,
    )


def report(number: int) -> WorkerReport:
    """The last one takes short sequences only."""
    limit = 50 if number == 2 else 100
    return WorkerReport(worker_id=f"w{number}", free_sequences=2, max_tokens_per_sequence=limit, costs=COSTS)


def cluster(num: int = 3) -> Cluster:
    made = Cluster()
    for number in range(num):
        made.update(report(number))
    return made


class Bookkeeper:
    """A policy and a cluster, and what must be true of both."""

    def __init__(self, name: str) -> None:
        self.policy, self.cluster, self.now = make_policy(name), cluster(), 0.0
        self.waiting: dict[str, QueuedRequest] = {}
        self.running: dict[str, str] = {}
        self.begun: set[str] = set()
        self.num_added = 0

    def do(self, deed: str, number: int, ttft: float | None) -> None:
        if deed == "add":
            self.num_added += 1
            tenant = "ab"[number % 2]
            one = request(f"r{self.num_added}", tokens=number, arrived=self.now, ttft=ttft, tpot=0.05, tenant=tenant)
            self.waiting[one.request_id] = one
            self.policy.add(one, self.now)
        elif deed == "discard":
            self.policy.discard(f"r{number}")
            self.waiting.pop(f"r{number}", None)
        elif deed == "pick":
            self.pick()
        elif deed == "first token" and self.running:
            name = sorted(self.running)[number % len(self.running)]
            self.cluster.first_token(name, self.now)
        elif deed == "end" and self.running:
            self.end(sorted(self.running)[number % len(self.running)])
        elif deed == "pass":
            self.now += number / 100
        elif deed == "leave":
            self.cluster.remove(f"w{number}")
            self.running = {name: worker for name, worker in self.running.items() if worker != f"w{number}"}
            self.cluster.update(report(number))
        assert len(self.policy) == len(self.waiting)

    def pick(self) -> bool:
        admission = self.policy.pick(self.cluster, self.now)
        if admission is None:
            return False
        one, row = admission.request, self.cluster.worker_ids.index(admission.worker_id)
        assert self.waiting.pop(one.request_id) is one
        assert self.cluster.fits(one)[row]
        self.cluster.start(one, admission.worker_id, self.now)
        self.running[one.request_id] = admission.worker_id
        return True

    def end(self, name: str) -> None:
        self.cluster.end(name, self.now)
        del self.running[name]


@each_policy
@settings(max_examples=60, deadline=None)
@given(deeds=DEEDS)
def test_nothing_is_lost_or_taken_twice_and_all_that_waits_has_its_turn(
    name: str, deeds: list[tuple[str, int, float | None]]
) -> None:
    books = Bookkeeper(name)
    for deed, number, ttft in deeds:
        books.do(deed, number, ttft)
    for _ in range(200):
        while books.pick():
            pass
        for running in list(books.running):
            books.end(running)
        books.now += 10.0
    assert not books.waiting
    assert len(books.policy) == 0
    assert books.policy.pick(books.cluster, books.now) is None


@each_policy
def test_an_idle_worker_is_given_what_fits(name: str) -> None:
    policy = make_policy(name)
    policy.add(request("r", tokens=90, ttft=0.001, tpot=1e-9), 0.0)
    assert policy.pick(cluster(1), 0.0) is not None


@each_policy
def test_a_request_too_long_for_all_does_not_hold_up_the_next(name: str) -> None:
    policy = make_policy(name)
    policy.add(request("long", tokens=1000, ttft=9.0, expected=1), 0.0)
    policy.add(request("short", tokens=10, ttft=9.5, expected=900), 0.0)
    admission = policy.pick(cluster(), 0.0)
    assert admission is not None
    assert admission.request.request_id == "short"
    assert policy.pick(cluster(), 0.0) is None
    assert len(policy) == 1


@each_policy
def test_one_added_again_waits_once(name: str) -> None:
    policy = make_policy(name)
    for _ in range(2):
        policy.add(request("r"), 0.0)
    assert len(policy) == 1
    assert policy.pick(cluster(), 0.0) is not None
    assert policy.pick(cluster(), 0.0) is None


@pytest.mark.parametrize("name", sorted(POLICIES.keys() - {"shortest", "edf"}))
def test_the_oldest_is_not_passed_over_for_ever(name: str) -> None:
    """One worker, and always more that is due sooner and shorter than it can do; the order of two baselines does pass
    over what is neither."""
    policy, workers = make_policy(name), cluster(1)
    policy.add(request("old", tokens=80, ttft=0.5), 0.0)
    now = 0.0
    for number in range(2000):
        now += 0.1
        policy.add(request(f"r{number}", tokens=40, arrived=now, ttft=0.2), now)
        policy.add(request(f"s{number}", tokens=60, arrived=now, ttft=0.3), now)
        admission = policy.pick(workers, now)
        if admission is None:
            continue
        if admission.request.request_id == "old":
            return
        workers.start(admission.request, admission.worker_id, now)
        workers.end(admission.request.request_id, now)
    pytest.fail("it never had its turn")


@pytest.mark.parametrize(
    ("name", "first"), [("fifo", "early"), ("shortest", "short"), ("edf", "urgent")], ids=["fifo", "shortest", "edf"]
)
def test_baselines_take_the_first_of_their_order(name: str, first: str) -> None:
    policy = make_policy(name)
    policy.add(request("urgent", tokens=50, arrived=2.0, ttft=1.0), 2.0)
    policy.add(request("early", tokens=50, arrived=1.0, ttft=9.0), 2.0)
    policy.add(request("short", tokens=5, arrived=1.5), 2.0)
    admission = policy.pick(cluster(), 2.0)
    assert admission is not None
    assert admission.request.request_id == first


@pytest.mark.parametrize(("name", "placement"), [("nosuch", None), ("fifo", "nosuch")], ids=["policy", "placement"])
def test_unknown_names_are_refused_with_those_that_there_are(name: str, placement: str | None) -> None:
    with pytest.raises(ValueError, match=r"there are .*(fifo|most-free)"):
        make_policy(name, placement=placement)
