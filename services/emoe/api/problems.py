"""pydantic's errors as a person wants them: a field's path as YAML has it, what is wrong, what would do."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from emoe.api.schema import BROKEN_RULES
from emoe.core.errors import FieldProblem

_PREFIX = "Value error, "
_UNION_BRANCHES = frozenset({"int", "str"})


def list_problems(error: ValidationError) -> tuple[FieldProblem, ...]:
    """In the order of the fields, each once."""
    found = [problem for detail in error.errors(include_url=False) for problem in _problems_of(detail)]
    return tuple(dict.fromkeys(found))


def _problems_of(detail: ErrorDetails) -> list[FieldProblem]:
    path = _path(detail["loc"])
    if detail["type"] == BROKEN_RULES:
        return [FieldProblem(path=(path + field).lstrip("."), message=text) for field, text in detail["ctx"]["found"]]
    if detail["type"] == "extra_forbidden":
        return [FieldProblem(path=path, message="there is no such field; see kubectl explain moed, or remove it")]
    if detail["type"] == "missing":
        return [FieldProblem(path=path, message="is required; give it a value")]
    if detail["loc"] and detail["loc"][-1] in _UNION_BRANCHES:
        return [FieldProblem(path=path, message=f"must be a number or a text, not {_shown(detail['input'])}")]
    message = detail["msg"].removeprefix(_PREFIX)
    shown = "" if detail["msg"].startswith(_PREFIX) else f", not {_shown(detail['input'])}"
    return [FieldProblem(path=path, message=message[:1].lower() + message[1:] + shown)]


def _path(loc: Sequence[int | str]) -> str:
    """`spec.tasks[0].name`."""
    parts = [
        part for index, part in enumerate(loc) if not (index and index == len(loc) - 1 and part in _UNION_BRANCHES)
    ]
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.lstrip(".")


def _shown(value: object) -> str:
    return repr(value)[:80]
