"""Task names: the request classes that predictions, profiles and schedules are kept for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from emoe.core.errors import InvalidRequestError

UNKNOWN = "unknown"
BUILTIN_TASKS = ("chat", "classification", "code", "math", "qa", "summarization", "translation")

MAX_EXAMPLES = 16
"""Of one task."""
MAX_EXAMPLE_CHARACTERS = 2000
MAX_EXAMPLES_TOTAL = 256
MAX_EXAMPLES_BYTES = 32 * 1024
"""All tasks' together: what fits into an environment variable, escaped."""

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")


def parse_task(name: str, known: frozenset[str]) -> str:
    """`name` as a task; empty means that the client named none. InvalidRequestError names the known ones."""
    if not name:
        return UNKNOWN
    if name not in known | {UNKNOWN}:
        raise InvalidRequestError(f"task {name!r} is not known here; use one of {', '.join(sorted(known))}, or none")
    return name


def parse_task_name(name: str) -> str:
    """A name that a user gives to a task of his own; ValueError if it would not do as a label."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"task name {name!r} must match {_NAME.pattern}")
    return name


def check_examples(examples: Mapping[str, Sequence[str]]) -> None:
    """Prompts that show what a task is; ValueError names the task, the example and the bound."""
    for task, prompts in examples.items():
        if not 1 <= len(prompts) <= MAX_EXAMPLES:
            raise ValueError(f"task {task!r} has {len(prompts)} examples; give 1 to {MAX_EXAMPLES}")
        for index, prompt in enumerate(prompts):
            if not prompt.strip():
                raise ValueError(f"examples[{index}] of task {task!r} is empty; leave it out, or write a prompt")
            if len(prompt) > MAX_EXAMPLE_CHARACTERS:
                raise ValueError(
                    f"examples[{index}] of task {task!r} has {len(prompt)} characters, more than "
                    f"{MAX_EXAMPLE_CHARACTERS}; shorten it in the middle: its beginning and end tell most"
                )
    if (total := sum(map(len, examples.values()))) > MAX_EXAMPLES_TOTAL:
        raise ValueError(f"there are {total} examples in all, more than {MAX_EXAMPLES_TOTAL}; give fewer a task")
    num_bytes = sum(len(prompt.encode()) for prompts in examples.values() for prompt in prompts)
    if num_bytes > MAX_EXAMPLES_BYTES:
        raise ValueError(
            f"the examples have {num_bytes} bytes in all, more than {MAX_EXAMPLES_BYTES}; shorten them, or give fewer"
        )
