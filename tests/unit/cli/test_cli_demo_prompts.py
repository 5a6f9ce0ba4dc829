"""The prompts of the demonstration."""

from __future__ import annotations

from emoe.cli.demo_prompts import DEMO_PROMPTS
from emoe.core.tasks import BUILTIN_TASKS


def test_every_task_is_asked() -> None:
    assert {prompt.task for prompt in DEMO_PROMPTS} == set(BUILTIN_TASKS)


def test_no_prompt_is_asked_twice() -> None:
    assert len({prompt.prompt for prompt in DEMO_PROMPTS}) == len(DEMO_PROMPTS)
