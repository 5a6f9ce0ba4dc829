"""Whatever happens to it, the cluster's running sums are those that looking at every request again would give."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from emoe.core.schedule.cluster import Cluster, WorkerReport
from emoe.core.schedule.costs import StepCosts
from emoe.core.schedule.request import QueuedRequest

COSTS = StepCosts(
    base_seconds=0.01,
    prompt_token_seconds=1e-4,
    sequence_seconds=1e-3,
    context_token_seconds=1e-6,
    missed_token_seconds=1e-3,
    step_tokens=256,
)


def report(name: str, *, free: int = 4, costs: StepCosts = COSTS, coverage: float = 0.5) -> WorkerReport:
    return WorkerReport(
        worker_id=name, free_sequences=free, max_tokens_per_sequence=1000, costs=costs, coverage={"qa": coverage}
    )


def request(name: str, *, tokens: int = 100, task: str = "qa", tpot: float | None = None) -> QueuedRequest:
    return QueuedRequest(
        request_id=name,
        task=task,
        arrived_seconds=0.0,
        num_prompt_tokens=tokens,
        num_expected_tokens=20,
        max_tokens=100,
        tpot_seconds=tpot,
    )


@dataclasses.dataclass
class Told:
    """What the machine told the cluster of one request."""

    request: QueuedRequest
    worker: str
    num_tokens: int = 0


class ClusterMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.cluster = Cluster()
        self.free: dict[str, int] = {}
        self.coverage: dict[str, float] = {}
        self.told: dict[str, Told] = {}
        self.num = 0
        self.now = 0.0

    def pick(self, data: st.DataObject, *, begun: bool | None = None) -> Told | None:
        fitting = [one for one in self.told.values() if begun is None or (one.num_tokens > 0) == begun]
        return data.draw(st.sampled_from(fitting)) if fitting else None

    @rule(name=st.sampled_from("abcdefghijkl"), free=st.integers(0, 3), coverage=st.floats(0, 1))
    def report(self, name: str, free: int, coverage: float) -> None:
        self.cluster.update(report(name, free=free, coverage=coverage))
        self.free[name], self.coverage[name] = free, coverage

    @precondition(lambda self: self.free)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.free)))
        self.cluster.remove(name)
        del self.free[name], self.coverage[name]
        self.told = {key: one for key, one in self.told.items() if one.worker != name}

    @precondition(lambda self: any(self.free.values()))
    @rule(data=st.data(), tokens=st.integers(1, 900))
    def start(self, data: st.DataObject, tokens: int) -> None:
        name = data.draw(st.sampled_from(sorted(name for name, free in self.free.items() if free > 0)))
        self.num += 1
        told = Told(request(f"r{self.num}", tokens=tokens), name)
        self.cluster.start(told.request, name, self.now)
        self.free[name] -= 1
        self.told[told.request.request_id] = told

    @rule(data=st.data(), seconds=st.floats(0, 1))
    def first_token(self, data: st.DataObject, seconds: float) -> None:
        self.now += seconds
        if (told := self.pick(data, begun=False)) is not None:
            self.cluster.first_token(told.request.request_id, self.now)
            told.num_tokens = 1

    @rule(data=st.data(), num=st.integers(1, 30))
    def progress(self, data: st.DataObject, num: int) -> None:
        if (told := self.pick(data, begun=True)) is not None:
            told.num_tokens += num
            self.cluster.progressed(told.request.request_id, told.num_tokens, self.now)

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if (told := self.pick(data)) is not None:
            self.cluster.end(told.request.request_id, self.now)
            self.cluster.end(told.request.request_id, self.now)
            self.free[told.worker] += 1
            del self.told[told.request.request_id]

    @invariant()
    def sums_are_those_of_all_requests(self) -> None:
        cluster = self.cluster
        assert set(cluster.worker_ids) == self.free.keys()
        assert cluster.num_running == len(self.told)
        assert cluster.num_free_sequences == sum(self.free.values())
        assert cluster.num_prompt_tokens == sum(self.prompts(name) for name in self.free)
        for row, name in enumerate(cluster.worker_ids):
            assert cluster.free_sequences[row] == self.free[name]
            assert cluster.prompt_tokens[row] == self.prompts(name)
            assert cluster.coverage("qa")[row] == self.coverage[name]
            assert cluster.coverage("unheard of")[row] == 0.0
            assert cluster.step_seconds[row] == pytest.approx(self.step_seconds(name))

    @invariant()
    def one_worker_is_foretold_as_all_are(self) -> None:
        newcomer = request("new", tokens=300)
        wait = self.cluster.predict_wait_seconds(newcomer, self.now)
        delay = self.cluster.delay_seconds(newcomer)
        for row, name in enumerate(self.cluster.worker_ids):
            assert wait[row] == pytest.approx(self.cluster.wait_seconds_on(row, newcomer, self.now))
            missed = (1 - self.coverage[name]) * 300 * COSTS.missed_token_seconds
            assert delay[row] == pytest.approx(300 * COSTS.prompt_token_seconds + missed)
            assert wait[row] >= delay[row]

    def prompts(self, name: str) -> int:
        return sum(
            one.request.num_prompt_tokens for one in self.told.values() if one.worker == name and one.num_tokens == 0
        )

    def step_seconds(self, name: str) -> float:
        decoding = [one for one in self.told.values() if one.worker == name and one.num_tokens > 0]
        context = sum(one.request.num_prompt_tokens + one.num_tokens for one in decoding)
        return COSTS.step_seconds(num_prompt_tokens=0, num_decoding=len(decoding), num_context_tokens=context)


TestCluster = ClusterMachine.TestCase
TestCluster.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_an_empty_cluster_foretells_nothing() -> None:
    cluster = Cluster()
    assert cluster.most_tokens() == 0
    assert len(cluster.fits(request("r"))) == len(cluster.predict_wait_seconds(request("r"), 1.0)) == 0


def test_only_workers_with_room_for_the_whole_sequence_fit() -> None:
    cluster = Cluster()
    for name, limit, free in (("long", 2000, 1), ("short", 500, 1), ("busy", 2000, 0)):
        cluster.update(WorkerReport(worker_id=name, free_sequences=free, max_tokens_per_sequence=limit, costs=COSTS))
    assert dict(zip(cluster.worker_ids, cluster.fits(request("r", tokens=900)), strict=True)) == {
        "long": True,
        "short": False,
        "busy": False,
    }
    assert cluster.most_tokens() == 2000
    cluster.start(request("r", tokens=900), "long", 0.0)
    assert cluster.most_tokens() == 500


def test_prompts_wait_for_those_before_them_and_time_clears_them() -> None:
    cluster = Cluster()
    cluster.update(report("w", costs=dataclasses.replace(COSTS, missed_token_seconds=0.0)))
    alone = cluster.predict_wait_seconds(request("b"), 0.0)[0]
    cluster.start(request("a"), "w", 0.0)
    assert cluster.predict_wait_seconds(request("b"), 0.0)[0] == pytest.approx(2 * alone)
    assert cluster.predict_wait_seconds(request("b"), alone / 2)[0] == pytest.approx(1.5 * alone)
    assert cluster.predict_wait_seconds(request("b"), 9.0)[0] == pytest.approx(alone)
    cluster.end("a", 0.0)
    assert cluster.predict_wait_seconds(request("b"), 0.0)[0] == pytest.approx(alone)


def test_slack_is_what_the_pace_leaves_and_an_admission_takes_of_it() -> None:
    cluster = Cluster()
    cluster.update(report("w", coverage=1.0))
    cluster.start(request("a", tpot=0.1), "w", 0.0)
    cluster.first_token("a", 1.0)
    step = cluster.step_seconds[0]
    slack = 0.1 * 19 - step * 19
    assert cluster.least_slack_seconds[0] == pytest.approx(slack)
    cluster.start(request("b"), "w", 1.0)
    assert cluster.least_slack_seconds[0] == pytest.approx(slack - 100 * COSTS.prompt_token_seconds)


def test_what_is_too_late_already_is_not_protected() -> None:
    cluster = Cluster()
    cluster.update(report("w", coverage=1.0))
    cluster.start(request("a", tpot=0.001), "w", 0.0)
    cluster.first_token("a", 1.0)
    assert cluster.least_slack_seconds[0] == math.inf


def test_a_worker_that_left_takes_what_ran_there_along() -> None:
    cluster = Cluster()
    for name in "abc":
        cluster.update(report(name, coverage=ord(name) / 200))
    cluster.start(request("r"), "a", 0.0)
    cluster.remove("a")
    cluster.remove("a")
    cluster.end("r", 1.0)
    assert cluster.num_running == cluster.num_prompt_tokens == 0
    np.testing.assert_array_equal(cluster.coverage("qa"), [ord(name) / 200 for name in cluster.worker_ids])
