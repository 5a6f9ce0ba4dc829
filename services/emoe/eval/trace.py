"""Arrivals as recorded: when each request came, of which task, with which prompt, and how long its answer was.

A CSV file, .gz or not, with a header: `arrival_s`, `task`, `output_tokens`, and `corpus_id`, which names a row of the
data that has the prompt. A window of it is cut out, and its times are scaled to what a machine can serve.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from emoe.core.errors import InvalidRequestError
from emoe.core.tasks import parse_task_name
from emoe.eval.rows import Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrival:
    """`at_seconds` from the window's beginning."""

    at_seconds: float
    row: Row
    max_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """`speed`: how many of the trace's seconds pass in one of ours. `max_tokens` cuts the longest answers."""

    begin_seconds: float = 0.0
    num_requests: int = 300
    speed: float = 1.0
    max_tokens: int = 256


def read_arrivals(trace: Path, rows: Mapping[str, Sequence[Row]], window: Window) -> list[Arrival]:
    """In order of arrival; those whose prompt the data lacks are left out. InvalidRequestError says what is wrong."""
    by_id = {row.row_id: row for part in rows.values() for row in part if row.row_id}
    arrivals: list[Arrival] = []
    try:
        with _open_text(trace) as lines:
            for at_seconds, corpus_id, num_tokens in _parse(trace, lines):
                row = by_id.get(corpus_id)
                if row is None or at_seconds < window.begin_seconds:
                    continue
                arrivals.append(
                    Arrival(
                        at_seconds=(at_seconds - window.begin_seconds) / window.speed,
                        row=row,
                        max_tokens=max(1, min(num_tokens, window.max_tokens)),
                    )
                )
                if len(arrivals) == window.num_requests:
                    break
    except OSError as error:
        raise InvalidRequestError(f"{trace}: cannot be read ({error.strerror or error})") from error
    if not arrivals:
        raise InvalidRequestError(
            f"{trace}: no request from second {window.begin_seconds:g} on names a row of the data by `corpus_id`; "
            "begin earlier, or give the data that the trace was made for"
        )
    return sorted(arrivals, key=lambda arrival: arrival.at_seconds)


def _parse(trace: Path, lines: TextIO) -> Iterator[tuple[float, str, int]]:
    reader = csv.DictReader(lines)
    lacking = {"arrival_s", "task", "corpus_id", "output_tokens"} - set(reader.fieldnames or ())
    if lacking:
        raise InvalidRequestError(f"{trace} has no column {', '.join(sorted(lacking))}")
    for number, entry in enumerate(reader, start=2):
        try:
            parse_task_name(entry["task"])
            yield float(entry["arrival_s"]), entry["corpus_id"], int(entry["output_tokens"])
        except (TypeError, ValueError) as error:
            raise InvalidRequestError(f"{trace}, line {number}: {error}") from error


def _open_text(trace: Path) -> TextIO:
    if trace.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(trace, "rb"), encoding="utf-8")
    return trace.open(encoding="utf-8")
