"""The targets of each task's requests, from a TOML table such as `slo.toml`, which says why they are what they are."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path

from emoe.core.errors import InvalidRequestError
from emoe.core.slo import Slo
from emoe.core.tasks import UNKNOWN

OWN_TABLE = Path(__file__).with_name("slo.toml")
_FIELDS = tuple(field.name for field in dataclasses.fields(Slo))


def read_slos(table: Path = OWN_TABLE, *, scale: float = 1.0) -> Mapping[str, Slo]:
    """Task -> targets, each times `scale`. InvalidRequestError says which task and field is wrong."""
    try:
        sections = tomllib.loads(table.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRequestError(f"{table}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{table} is no TOML: {error}") from error
    return {task: _parse(table, task, section, scale) for task, section in sections.items()}


def slo_of(slos: Mapping[str, Slo], task: str) -> Slo:
    """Those of `unknown` for a task that the table lacks; without these, none."""
    return slos.get(task) or slos.get(UNKNOWN) or Slo()


def _parse(table: Path, task: str, section: object, scale: float) -> Slo:
    if not isinstance(section, dict):
        raise InvalidRequestError(f"{table}: [{task}] must be a table with any of {', '.join(_FIELDS)}")
    unknown = section.keys() - {*_FIELDS, "reason"}
    if unknown:
        raise InvalidRequestError(
            f"{table}: [{task}] has no field {', '.join(sorted(unknown))}; use {', '.join(_FIELDS)}"
        )
    targets = {name: section[name] for name in _FIELDS if name in section}
    for name, value in targets.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidRequestError(f"{table}: [{task}] {name} must be a number of seconds, not {value!r}")
    return Slo(**{name: value * scale for name, value in targets.items()})
