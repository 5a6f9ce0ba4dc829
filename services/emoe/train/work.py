"""What `emoe profile` measured row by row, in its journal: which rows are done, and what they gave.

Two kinds of record: how a row routed, and how sensitive it is. Knows neither the model nor what is made of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from emoe.eval.recording import RowRouting
from emoe.train.journal import Journal, Record
from emoe.train.sensitivity import RowSensitivity

ROUTING, SENSITIVITY = "routing", "sensitivity"

RowKey = tuple[str, str, int]
"""Kind, task, number of the row in its task."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """`sensitivity`: of those tasks that were misrouted."""

    routing: Sequence[RowRouting]
    sensitivity: Mapping[str, Sequence[RowSensitivity]]


@dataclasses.dataclass(frozen=True)
class Work:
    journal: Journal

    def done(self) -> set[RowKey]:
        return {_key(record) for record in self.journal.records()}

    def keep_routing(self, number: int, row: RowRouting) -> None:
        metadata = {"kind": ROUTING, "task": row.task, "number": str(number)}
        lengths = np.array([row.num_prompt_tokens, row.num_response_tokens], dtype=np.int64)
        self.journal.append(metadata, {"ids": row.ids, "lengths": lengths})

    def keep_sensitivity(self, task: str, number: int, row: RowSensitivity) -> None:
        metadata = {"kind": SENSITIVITY, "task": task, "number": str(number)}
        judged = np.array(row.num_judged, dtype=np.int64)
        self.journal.append(metadata, {"similarity": row.similarity, "nll": row.nll, "judged": judged})

    def results(self) -> Results:
        """By task and number, in whatever order they were measured."""
        found = sorted(((_key(record), record) for record in self.journal.records()), key=lambda item: item[0])
        sensitivity: dict[str, list[RowSensitivity]] = {}
        for (kind, task, _), record in found:
            if kind == SENSITIVITY:
                sensitivity.setdefault(task, []).append(_parse_sensitivity(record))
        routing = [_parse_routing(record) for (kind, _, _), record in found if kind == ROUTING]
        return Results(routing=routing, sensitivity=sensitivity)


def _key(record: Record) -> RowKey:
    metadata, _ = record
    return metadata["kind"], metadata["task"], int(metadata["number"])


def _parse_routing(record: Record) -> RowRouting:
    metadata, arrays = record
    num_prompt, num_response = arrays["lengths"].tolist()
    return RowRouting(
        task=metadata["task"], num_prompt_tokens=num_prompt, num_response_tokens=num_response, ids=arrays["ids"]
    )


def _parse_sensitivity(record: Record) -> RowSensitivity:
    _, arrays = record
    return RowSensitivity(similarity=arrays["similarity"], nll=arrays["nll"], num_judged=int(arrays["judged"]))
