"""Task names: the request classes that predictions, profiles and schedules are kept for."""

from __future__ import annotations

import re

from emoe.core.errors import InvalidRequestError

UNKNOWN = "unknown"
BUILTIN_TASKS = ("chat", "classification", "code", "math", "qa", "summarization", "translation")

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
