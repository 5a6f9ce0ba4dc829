"""Length estimates and settings of the front door."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from emoe.core.generation import Usage
from emoe.runtime.messages import ParsedRequest, parse_request
from emoe.scheduler.lengths import LengthEstimator
from emoe.scheduler.settings import SchedulerSettings
from emoe.store.profile import Lengths
from emoe.v1 import generation_pb2 as pb


def request(text: str = "x" * 40, *, task: str = "qa", max_tokens: int = 100) -> ParsedRequest:
    return parse_request(pb.GenerateRequest(text=text, task=task, sampling=pb.Sampling(max_tokens=max_tokens)))


def lengths_of(mean: float) -> Lengths:
    return Lengths(mean=mean, p50=mean, p90=mean, p99=mean)


def usage(*, prompt: int, completion: int) -> Usage:
    return Usage(num_prompt_tokens=prompt, num_completion_tokens=completion, num_expert_hits=0, num_expert_choices=0)


def test_token_ids_are_counted_exactly() -> None:
    parsed = parse_request(pb.GenerateRequest(token_ids=pb.TokenIds(ids=range(17))))
    assert LengthEstimator().prompt_tokens(parsed) == 17


def test_prompt_estimate_moves_towards_what_workers_counted() -> None:
    lengths = LengthEstimator()
    before = lengths.prompt_tokens(request())
    for _ in range(100):
        lengths.observe(request(), usage(prompt=20, completion=5))
    assert before == 10
    assert lengths.prompt_tokens(request()) == 20


def test_answer_estimate_is_the_tasks_own_and_never_more_than_asked_for() -> None:
    lengths = LengthEstimator()
    lengths.observe(request(task="qa"), usage(prompt=10, completion=8))
    assert lengths.answer_tokens(request(task="qa")) == 8
    assert lengths.answer_tokens(request(task="code")) == 50
    assert lengths.answer_tokens(request(task="qa", max_tokens=3)) == 3


def test_a_profiled_task_begins_at_its_mean_answer_and_moves_with_what_is_seen() -> None:
    lengths = LengthEstimator()
    lengths.begin_from({"qa": lengths_of(30.4), "math": lengths_of(0.2)})
    assert lengths.answer_tokens(request(task="qa")) == 30
    assert lengths.answer_tokens(request(task="math")) == 1
    assert lengths.answer_tokens(request(task="code")) == 50, "no profile: half of what was asked for"
    lengths.observe(request(task="qa"), usage(prompt=10, completion=9))
    assert lengths.answer_tokens(request(task="qa")) == 29, "one answer beside the profile's twenty"
    for _ in range(2000):
        lengths.observe(request(task="qa"), usage(prompt=10, completion=10))
    assert lengths.answer_tokens(request(task="qa")) == 10


def test_what_was_seen_goes_before_a_profile_that_comes_later() -> None:
    lengths = LengthEstimator()
    lengths.observe(request(task="qa"), usage(prompt=10, completion=8))
    lengths.begin_from({"qa": lengths_of(30.0), "code": lengths_of(40.0)})
    assert lengths.answer_tokens(request(task="qa")) == 8
    assert lengths.answer_tokens(request(task="code")) == 40


def test_what_was_seen_of_another_model_is_forgotten() -> None:
    lengths = LengthEstimator()
    lengths.begin_from({}, model="one")
    lengths.observe(request(task="qa"), usage(prompt=10, completion=8))
    lengths.begin_from({"qa": lengths_of(30.0)}, model="one")
    assert lengths.answer_tokens(request(task="qa")) == 8
    lengths.begin_from({"qa": lengths_of(30.0)}, model="another")
    assert lengths.answer_tokens(request(task="qa")) == 30


def test_an_answer_is_expected_as_long_as_the_limit_lets_it_become() -> None:
    lengths = LengthEstimator()
    for num_tokens in (10, 90):
        lengths.observe(request(), usage(prompt=10, completion=num_tokens))
    assert lengths.answer_tokens(request(max_tokens=20)) == 15
    assert lengths.answer_tokens(request(max_tokens=1000)) == 50


def test_what_remains_is_corrected_while_a_request_runs() -> None:
    lengths = LengthEstimator()
    for num_tokens in (10, 20):
        lengths.observe(request(), usage(prompt=10, completion=num_tokens))
    remaining = [lengths.expected_remaining(request(max_tokens=22), so_far) for so_far in (0, 5, 10, 15, 21, 22)]
    assert remaining == [15, 10, 10, 5, 1, 0]
    assert lengths.expected_remaining(request(task="code", max_tokens=100), 10) == 45, "nothing known: half of the rest"


def test_a_measurement_that_fixes_its_answers_length_is_expected_like_any_other_request() -> None:
    lengths = LengthEstimator()
    lengths.observe(request(), usage(prompt=10, completion=40))
    sampling = pb.Sampling(max_tokens=3, ignore_eos=True)
    fixed = parse_request(pb.GenerateRequest(text="x", task="qa", sampling=sampling))
    assert lengths.answer_tokens(fixed) == 40


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"policy": "lifo"}, id="unknown policy"),
        pytest.param({"extra_tasks": ("Not A Label",)}, id="task name"),
        pytest.param({"max_queued_requests": 0}, id="no queue"),
        pytest.param({"max_deadline_seconds": -1}, id="negative deadline"),
        pytest.param({"colour": "blue"}, id="unknown key"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SchedulerSettings(loader="127.0.0.1:1", **wrong)
