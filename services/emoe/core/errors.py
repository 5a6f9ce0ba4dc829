"""Every error that emoe raises on purpose.

A message says what went wrong, on which id, and what to do. `runtime.errors` maps each class to a gRPC status; nothing
else looks at the class.
"""

from __future__ import annotations

import dataclasses


class EmoeError(Exception):
    """The root; raised as itself never."""


class InvalidRequestError(EmoeError):
    """The caller must change the request: it can never succeed as it is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldProblem:
    """What is wrong with one field of a resource; `path` is as its YAML has it, such as `spec.tasks[0].name`."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class InvalidResourceError(InvalidRequestError):
    """A MoEDeployment that can never be served as it is; `problems` has every one that was found."""

    def __init__(self, problems: tuple[FieldProblem, ...]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


class UnsupportedModelError(EmoeError):
    """The checkpoint is whole, but emoe cannot serve it; the message names the family or option and the reason."""


class CheckpointError(EmoeError):
    """A checkpoint file is missing, truncated, corrupt or foreign; the message names file and key."""


class BudgetError(EmoeError):
    """A memory budget cannot hold what the model needs at least."""


class PlanError(EmoeError):
    """A residency plan that the receiver must refuse: wrong model, too large, or not routable."""


class QueueFullError(EmoeError):
    """A bounded queue is full; try again after `retry_after_seconds`."""

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class NotReadyError(EmoeError):
    """A service that the request needs is starting, draining or gone; the same request may succeed later."""


class GenerationError(EmoeError):
    """One request failed inside the engine; others go on."""
