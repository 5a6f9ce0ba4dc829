"""What a tenant is charged: what its requests got, and what is foretold of those that run."""

from __future__ import annotations

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emoe.core.schedule.cluster import Cluster, WorkerReport
from emoe.core.schedule.costs import FIRST_GUESS
from emoe.core.schedule.counters import MAX_TENANTS_KEPT
from emoe.core.schedule.decisions import DecisionKind
from emoe.core.schedule.desk import PROGRESS_TOKENS, Desk
from emoe.core.schedule.fair import ANSWER_TOKEN_WEIGHT, FairAdmission
from emoe.core.schedule.policies import make_policy
from emoe.core.schedule.request import QueuedRequest

PROMPT, EXPECTED = 100, 50
FORETOLD = PROMPT + ANSWER_TOKEN_WEIGHT * EXPECTED


def request(request_id: str, tenant: str = "a", **fields: int) -> QueuedRequest:
    lengths = {"num_prompt_tokens": PROMPT, "num_expected_tokens": EXPECTED, "max_tokens": 10 * EXPECTED, **fields}
    return QueuedRequest(request_id=request_id, task="qa", tenant=tenant, arrived_seconds=0.0, **lengths)


class Counter:
    """A desk whose policy is at hand, with room for so many requests at once."""

    def __init__(self, free_sequences: int = 8) -> None:
        self.policy = FairAdmission(lambda: make_policy("fifo", fair=False))
        self.cluster = Cluster()
        self.report(free_sequences)
        self.desk = Desk(policy=self.policy, cluster=self.cluster, max_requests=10_000, max_bytes=1)

    def report(self, free_sequences: int) -> None:
        self.cluster.update(
            WorkerReport(
                worker_id="w", free_sequences=free_sequences, max_tokens_per_sequence=100_000, costs=FIRST_GUESS
            )
        )

    def start(self, one: QueuedRequest) -> None:
        self.desk.arrive(one, 0.0)
        assert [admission.request for admission in self.desk.admit(0.0)] == [one]

    def served(self, tenant: str = "a") -> float:
        try:
            return self.policy.served(tenant)
        except KeyError:
            return 0.0


def test_what_runs_is_charged_as_foretold_and_what_has_ended_as_it_was() -> None:
    counter = Counter()
    counter.start(request("one"))
    assert counter.served() == FORETOLD
    counter.desk.first_token("one", 0.0)
    counter.desk.progressed("one", 7, 0.0)
    assert counter.served() == FORETOLD
    counter.desk.end("one", 0.0, DecisionKind.DONE)
    assert counter.served() == PROMPT + 7 * ANSWER_TOKEN_WEIGHT


def test_an_answer_longer_than_foretold_is_charged_while_it_runs() -> None:
    counter = Counter()
    counter.start(request("one"))
    counter.desk.progressed("one", 3 * EXPECTED, 0.0)
    assert counter.served() == PROMPT + ANSWER_TOKEN_WEIGHT * 3 * EXPECTED


@pytest.mark.parametrize("kind", [DecisionKind.CANCELLED, DecisionKind.EXPIRED, DecisionKind.FAILED])
def test_a_request_that_ends_early_is_charged_what_it_got(kind: DecisionKind) -> None:
    counter = Counter()
    counter.start(request("one"))
    counter.desk.end("one", 0.0, kind)
    assert counter.served() == PROMPT


def test_a_request_that_waits_again_is_charged_once() -> None:
    counter = Counter()
    counter.start(request("one"))
    counter.desk.requeue(request("one"), 0.0)
    assert counter.served() == 0
    counter.desk.admit(0.0)
    assert counter.served() == FORETOLD


def test_a_request_that_leaves_the_queue_costs_nothing() -> None:
    counter = Counter(free_sequences=0)
    counter.desk.arrive(request("one"), 0.0)
    counter.desk.end("one", 0.0, DecisionKind.CANCELLED)
    assert counter.served() == 0


def test_a_tenant_whose_answers_are_shorter_than_foretold_has_more_turns() -> None:
    """Both are foretold the same; one's answers are a tenth of it."""
    counter = Counter(free_sequences=1)
    for number in range(100):
        for tenant in "ab":
            counter.desk.arrive(request(f"{tenant}{number}", tenant, num_prompt_tokens=1), 0.0)
    started: collections.Counter[str] = collections.Counter()
    for _ in range(60):
        (admission,) = counter.desk.admit(0.0)
        one = admission.request
        started[one.tenant] += 1
        counter.desk.progressed(one.request_id, EXPECTED if one.tenant == "a" else EXPECTED // 10, 0.0)
        counter.desk.end(one.request_id, 0.0, DecisionKind.DONE)
        counter.report(1)
    assert started["b"] > 5 * started["a"]


def test_what_is_corrected_of_a_tenant_that_was_forgotten_is_not_its_next_ones_gain() -> None:
    counter = Counter(free_sequences=2)
    counter.start(request("one", "forgotten"))
    for number in range(MAX_TENANTS_KEPT + 1):
        counter.desk.arrive(request("other", str(number)), 0.0)
        counter.desk.admit(0.0)
        counter.desk.end("other", 0.0, DecisionKind.DONE)
        counter.report(1)
    with pytest.raises(KeyError):
        counter.policy.served("forgotten")
    counter.desk.arrive(request("two", "forgotten"), 0.0)
    before = counter.served("forgotten")
    counter.desk.end("one", 0.0, DecisionKind.DONE)
    assert counter.served("forgotten") == before


HAPPENINGS = st.lists(
    st.tuples(
        st.sampled_from(["arrive", "arrive", "admit", "progress", "end", "requeue", "report"]),
        st.integers(0, 7),
        st.sampled_from("abc"),
    ),
    max_size=150,
)


@given(happenings=HAPPENINGS)
def test_a_counter_is_what_the_tenant_got_and_what_is_foretold_of_its_running_ones(
    happenings: list[tuple[str, int, str]],
) -> None:
    """And what idle time cost it: only an arrival may raise it so, to what others that wait have at least."""
    counter = Counter(free_sequences=2)
    desk = counter.desk
    lifted, got = collections.defaultdict[str, float](float), collections.defaultdict[str, float](float)
    waiting: dict[str, QueuedRequest] = {}
    running: dict[str, tuple[QueuedRequest, int]] = {}
    for step, (happening, which, tenant) in enumerate(happenings):
        chosen = sorted(running)[which % len(running)] if running else ""
        match happening:
            case "arrive":
                before = counter.served(tenant)
                others = [counter.served(one.tenant) for one in waiting.values()]
                one = request(str(step), tenant, num_prompt_tokens=1 + 10 * which, num_expected_tokens=5 * which + 1)
                desk.arrive(one, 0.0)
                rise = counter.served(tenant) - before
                assert rise == 0 or tenant not in {other.tenant for other in waiting.values()}
                assert not others or counter.served(tenant) >= min(others)
                waiting[one.request_id] = one
                lifted[tenant] += rise
            case "admit":
                for admission in desk.admit(0.0):
                    name = admission.request.request_id
                    running[name] = (waiting.pop(name), 0)
            case "progress" if chosen and which:
                one, num_tokens = running[chosen]
                running[chosen] = (one, num_tokens + PROGRESS_TOKENS * which)
                desk.progressed(chosen, running[chosen][1], 0.0)
            case "end" if chosen:
                one, num_tokens = running.pop(chosen)
                got[one.tenant] += one.num_prompt_tokens + ANSWER_TOKEN_WEIGHT * num_tokens
                desk.end(chosen, 0.0, DecisionKind.DONE)
            case "requeue" if chosen and not running[chosen][1]:
                one, _ = running.pop(chosen)
                before = counter.served(one.tenant)
                charged = one.num_prompt_tokens + ANSWER_TOKEN_WEIGHT * one.num_expected_tokens
                desk.requeue(one, 0.0)
                rise = counter.served(one.tenant) - before + charged
                assert rise == 0 or one.tenant not in {other.tenant for other in waiting.values()}
                waiting[chosen] = one
                lifted[one.tenant] += rise
            case "report":
                counter.report(which % 4)
        for name in "abc":
            runs = [
                one.num_prompt_tokens + ANSWER_TOKEN_WEIGHT * max(one.num_expected_tokens, num_tokens)
                for one, num_tokens in running.values()
                if one.tenant == name
            ]
            assert counter.served(name) == lifted[name] + got[name] + sum(runs)
            assert lifted[name] >= 0
    assert counter.policy.num_charged == len(running)
