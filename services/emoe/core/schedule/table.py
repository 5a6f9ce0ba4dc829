"""The workers side by side: a row a worker, a column a figure, so that one look over a thousand is a few vector steps.

Rows are dense: capacity doubles when it is full, and the last row takes the place of one that leaves.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

FIRST_CAPACITY = 8


COLUMNS = (
    "free",
    "limit",
    "prompts",
    "clear",
    "step",
    "room",
    "slack",
    "young_slack",
    "ready",
    "next_step",
    "tpot",
    "prompt_seconds",
    "context_seconds",
    "missed_seconds",
    "rows",
    "full_step",
)


class WorkerTable:
    """Its arrays are views, as long as there are workers: not to be kept over a change."""

    free: FloatArray
    """Sequences that it can take."""
    limit: FloatArray
    """Tokens of one sequence, at most."""
    prompts: FloatArray
    """Tokens of prompts that wait there."""
    clear: FloatArray
    """The time at which those are expected to be done."""
    step: FloatArray
    """Seconds of a step of what decodes there, alone."""
    room: FloatArray
    """Tokens of prompts that such a step can take."""
    slack: FloatArray
    """Seconds by which what runs there can be delayed."""
    young_slack: FloatArray
    """The same if their answers turn out much shorter than foretold."""
    ready: FloatArray
    """The time from which it is nearly done with its prompts; infinity while it has no free sequence."""
    next_step: FloatArray
    """Seconds of a step with one more sequence; minus infinity where none decodes."""
    tpot: FloatArray
    """The tightest target of a token of what decodes there, in seconds."""
    prompt_seconds: FloatArray
    """Costs, as `StepCosts` has them."""
    context_seconds: FloatArray
    """A token of context that a sequence attends to."""
    missed_seconds: FloatArray
    rows: FloatArray
    """Sequences that it runs at most."""
    full_step: FloatArray
    """Seconds of a step in which as many decode, alone."""

    def __init__(self) -> None:
        self.num_rows = 0
        self._cells: FloatArray = np.zeros((len(COLUMNS), FIRST_CAPACITY))
        self._coverage: dict[str, FloatArray] = {}
        self._nothing: FloatArray = np.zeros(FIRST_CAPACITY)
        self._look()

    def append(self) -> int:
        """The row of a worker that joins."""
        row = self.num_rows
        if row == self._cells.shape[1]:
            self._cells = np.concatenate([self._cells, np.zeros_like(self._cells)], axis=1)
            self._coverage = {task: np.concatenate([cells, np.zeros(row)]) for task, cells in self._coverage.items()}
            self._nothing = np.zeros(2 * row)
        self.num_rows = row + 1
        self._cells[:, row] = 0.0
        self._look()
        return row

    def remove(self, row: int) -> None:
        """The last row moves to `row`."""
        last = self.num_rows - 1
        self._cells[:, row] = self._cells[:, last]
        for cells in self._coverage.values():
            cells[row], cells[last] = cells[last], 0.0
        self.num_rows = last
        self._look()

    def cover(self, row: int, old: Mapping[str, float], new: Mapping[str, float]) -> None:
        for task in old.keys() - new.keys():
            self._coverage[task][row] = 0.0
        for task, share in new.items():
            if task not in self._coverage:
                self._coverage[task] = np.zeros(self._cells.shape[1])
            self._coverage[task][row] = share

    def coverage(self, task: str) -> FloatArray:
        """Zeros for a task that no worker reported."""
        return self._coverage.get(task, self._nothing)[: self.num_rows]

    def _look(self) -> None:
        for name, cells in zip(COLUMNS, self._cells, strict=True):
            setattr(self, name, cells[: self.num_rows])
