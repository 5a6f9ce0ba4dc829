"""The mix of tasks over all schedulers, and the prompts that the refresh interval counts."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emoe.core.errors import QueueFullError
from emoe.loader.news import News
from emoe.loader.task_mix import TaskMix, TaskReport


def said(num_prompts: int = 0, **task_tokens: float) -> TaskReport:
    return TaskReport(task_tokens=task_tokens, num_prompts=num_prompts)


def new_mix(*, max_schedulers: int = 64) -> TaskMix:
    return TaskMix(planning=News(), max_schedulers=max_schedulers)


def test_tokens_of_all_schedulers_add_up() -> None:
    mix = new_mix()
    with mix.joined("a") as a, mix.joined("b") as b:
        mix.update(a, said(code=10, math=5))
        mix.update(b, said(code=1))
        assert mix.task_tokens == {"code": 11, "math": 5}


def test_waiting_tokens_add_up_and_end_with_what_waits() -> None:
    mix = new_mix()
    with mix.joined("a") as a, mix.joined("b") as b:
        mix.update(a, TaskReport(task_tokens={"code": 10}, waiting_tokens={"code": 4}, num_prompts=0))
        mix.update(b, TaskReport(task_tokens={"code": 10}, waiting_tokens={"code": 2, "math": 0}, num_prompts=0))
        version = mix.version
        assert mix.waiting_tokens == {"code": 6}
        mix.update(a, said(code=10))
        mix.update(b, said(code=10))
        assert mix.waiting_tokens == {}
        assert mix.version > version


def test_a_report_replaces_the_schedulers_last() -> None:
    mix = new_mix()
    with mix.joined("a") as a:
        mix.update(a, said(code=10))
        mix.update(a, said(math=3))
        assert mix.task_tokens == {"math": 3}


def test_a_scheduler_that_leaves_takes_its_tasks_along() -> None:
    mix = new_mix()
    with mix.joined("a") as a:
        mix.update(a, said(code=10))
        with mix.joined("b") as b:
            mix.update(b, said(math=3))
        assert mix.task_tokens == {"code": 10}


def test_the_last_mix_stands_when_nothing_runs() -> None:
    mix = new_mix()
    with mix.joined("a") as a:
        mix.update(a, said(code=10))
        mix.update(a, said())
        version = mix.version
    assert mix.task_tokens == {"code": 10}
    assert mix.version == version


def test_the_version_rises_only_when_the_mix_changes() -> None:
    news = News()
    mix = TaskMix(planning=news)
    with mix.joined("a") as a:
        mix.update(a, said(0, code=10))
        before = mix.version, news.count
        mix.update(a, said(0, code=10))
        assert (mix.version, news.count) == before
        mix.update(a, said(0, code=11))
        assert mix.version == before[0] + 1


@given(counts=st.lists(st.integers(0, 1000), min_size=1, max_size=20))
def test_prompts_never_fall_and_count_what_came_since_each_report(counts: list[int]) -> None:
    mix = new_mix()
    expected = 0
    with mix.joined("a") as a:
        for before, now in zip([None, *counts], counts, strict=False):
            mix.update(a, said(now))
            expected += 0 if before is None else now - before if now >= before else now
            assert mix.num_prompts == expected


def test_a_scheduler_that_reconnects_goes_on_counting() -> None:
    mix = new_mix()
    with mix.joined("a") as a:
        mix.update(a, said(100))
        mix.update(a, said(110))
    with mix.joined("a") as a:
        mix.update(a, said(115))
    assert mix.num_prompts == 15


def test_a_scheduler_first_heard_of_late_does_not_count_as_a_burst() -> None:
    mix = new_mix()
    with mix.joined("a") as a:
        mix.update(a, said(1_000_000))
    assert mix.num_prompts == 0


def test_a_second_stream_of_a_scheduler_silences_the_first() -> None:
    mix = new_mix()
    with contextlib.ExitStack() as first:
        old = first.enter_context(mix.joined("a"))
        mix.update(old, said(10, code=10))
        with mix.joined("a") as new:
            mix.update(new, said(12, math=1))
            mix.update(old, said(50, code=10))
            first.close()
            assert mix.task_tokens == {"math": 1}
            assert mix.num_prompts == 2


def test_too_many_schedulers_are_refused() -> None:
    mix = new_mix(max_schedulers=1)
    with mix.joined("a"), pytest.raises(QueueFullError, match="1 schedulers"), mix.joined("b"):
        pass
