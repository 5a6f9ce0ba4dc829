"""Sampling, SLO and task names refuse what can never work, and say why."""

from __future__ import annotations

import math

import pytest

from emoe.core.errors import InvalidRequestError
from emoe.core.generation import MAX_LOGPROBS, MAX_STOP_CHARACTERS, MAX_STOP_STRINGS, Sampling
from emoe.core.slo import Slo
from emoe.core.tasks import BUILTIN_TASKS, UNKNOWN, parse_task, parse_task_name

KNOWN = frozenset(BUILTIN_TASKS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", 101.0),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("top_k", -1),
        ("stop", ("",)),
        ("stop", ("x" * (MAX_STOP_CHARACTERS + 1),)),
        ("stop", ("x",) * (MAX_STOP_STRINGS + 1)),
        ("num_logprobs", -1),
        ("num_logprobs", MAX_LOGPROBS + 1),
    ],
)
def test_sampling_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=f"sampling.{field}"):
        Sampling(**{field: value})  # type: ignore[arg-type]


def test_sampling_takes_its_limits() -> None:
    Sampling(
        max_tokens=1,
        temperature=100,
        top_p=1e-9,
        stop=("x" * MAX_STOP_CHARACTERS,) * MAX_STOP_STRINGS,
        num_logprobs=MAX_LOGPROBS,
    )


@pytest.mark.parametrize("field", ["ttft_seconds", "tpot_seconds", "end_to_end_seconds"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_target_that_is_no_positive_time_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(InvalidRequestError, match=f"slo.{field}"):
        Slo(**{field: value})


def test_an_objective_without_targets_is_allowed() -> None:
    assert Slo() == Slo(ttft_seconds=None, tpot_seconds=None, end_to_end_seconds=None)


def test_a_request_without_a_task_is_unknown() -> None:
    assert parse_task("", KNOWN) == UNKNOWN
    assert parse_task(UNKNOWN, KNOWN) == UNKNOWN


def test_a_known_task_is_itself() -> None:
    assert parse_task("code", KNOWN) == "code"


def test_a_task_not_known_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequestError, match=r"'cooking'.*chat.*translation"):
        parse_task("cooking", KNOWN)


@pytest.mark.parametrize("name", ["law", "law-2", "a_b", "x" * 63])
def test_a_users_task_name_may_be_a_label(name: str) -> None:
    assert parse_task_name(name) == name


@pytest.mark.parametrize("name", ["", "Law", "2law", "-law", "law ", "law\n", "x" * 64, "läw"])
def test_a_users_task_name_that_is_no_label_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must match"):
        parse_task_name(name)
