"""What can go wrong between the operator and the API server, and the one table that says what follows from it.

Temporary: try the same again, later and later. Permanent: nothing helps but a change of an object, whose event wakes
the resource anyway. Gone: the resource or its namespace is going away, and nobody wants to read about it.
"""

from __future__ import annotations

import enum
from typing import Any

from emoe.core.errors import EmoeError

NOT_FOUND = 404
CONFLICT = 409
INVALID = 422


class ApiError(EmoeError):
    """What the API server answered, or, with status 0, why it could not be asked."""

    def __init__(self, what: str, *, status: int, reason: str, message: str, causes: tuple[str, ...] = ()) -> None:
        super().__init__(f"{what}: {message or reason or status}")
        self.status = status
        self.reason = reason
        self.message = message
        self.causes = causes
        self.retry_after_seconds: float | None = None

    @classmethod
    def parse(cls, what: str, *, status: int, answer: Any) -> ApiError:
        """From the body of a metav1.Status, or of whatever a proxy in between put in its place."""
        body = answer if isinstance(answer, dict) else {}
        details = body.get("details") or {}
        error = cls(
            what,
            status=status,
            reason=str(body.get("reason") or f"Status{status}"),
            message=str(body.get("message") or ""),
            causes=tuple(str(cause.get("reason", "")) for cause in details.get("causes") or ()),
        )
        if seconds := details.get("retryAfterSeconds"):
            error.retry_after_seconds = float(seconds)
        return error


class NameTakenError(EmoeError):
    """An object that the resource needs exists already and is somebody else's."""


class StillDeletingError(EmoeError):
    """An object of the name that is needed is still being deleted."""


class NoClusterError(EmoeError):
    """Neither a service account nor a kubeconfig says where the API server is."""


class NotInstalledError(EmoeError):
    """The API server does not know the resource that the operator serves."""


class LeaseLostError(EmoeError):
    """Another replica leads, or nobody can tell; this process has to end."""


class WatchEndedError(EmoeError):
    """The watches of the API server ended by themselves."""


class Verdict(enum.StrEnum):
    TEMPORARY = "temporary"
    PERMANENT = "permanent"
    GONE = "gone"


_PERMANENT_STATUS = frozenset({400, 405, 406, 413, 415, INVALID})
_GONE_CAUSE = "NamespaceTerminating"

VERDICT_OF: dict[type[EmoeError], Verdict] = {
    # Objects that do not carry the label are not watched: only asking again finds that they are gone.
    NameTakenError: Verdict.TEMPORARY,
    StillDeletingError: Verdict.TEMPORARY,
    EmoeError: Verdict.PERMANENT,
}


def verdict_of(error: Exception) -> Verdict:
    """Any error that was not raised on purpose is a bug, and is tried again: it may hang on a passing state."""
    if isinstance(error, ApiError):
        return _verdict_of_api(error)
    kinds = type(error).__mro__
    return next((VERDICT_OF[kind] for kind in kinds if kind in VERDICT_OF), Verdict.TEMPORARY)


def _verdict_of_api(error: ApiError) -> Verdict:
    if _GONE_CAUSE in error.causes or (error.status == NOT_FOUND and "namespaces" in error.message):
        return Verdict.GONE
    return Verdict.PERMANENT if error.status in _PERMANENT_STATUS else Verdict.TEMPORARY
