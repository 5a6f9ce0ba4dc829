"""Why a model could not be fetched or opened, in the words of a resource's conditions.

Raised by whoever talks to a source; the opening loop turns it into what WatchModel says, and into a pause.
"""

from __future__ import annotations

import enum
import errno

from emoe.core.errors import CheckpointError, NotReadyError, UnsupportedModelError


class Reason(enum.StrEnum):
    NOT_FOUND = "NotFound"
    UNAUTHORIZED = "Unauthorized"
    UNREACHABLE = "Unreachable"
    CORRUPT = "Corrupt"
    UNSUPPORTED = "Unsupported"
    NO_SPACE = "NoSpace"
    INVALID_SOURCE = "InvalidSource"


_MAY_PASS = frozenset({Reason.UNREACHABLE, Reason.NO_SPACE})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class FetchError(NotReadyError):
    """`permanent`: nothing but a change of what was asked for, or of what the source holds, will help."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    @property
    def permanent(self) -> bool:
        return self.reason not in _MAY_PASS


def explain(error: FetchError | CheckpointError | UnsupportedModelError | OSError) -> FetchError:
    """Whatever fetching or opening can end with, as one error with a reason."""
    if isinstance(error, FetchError):
        return error
    if isinstance(error, UnsupportedModelError):
        return FetchError(Reason.UNSUPPORTED, str(error))
    if isinstance(error, CheckpointError):
        missing = isinstance(error.__cause__, FileNotFoundError)
        return FetchError(Reason.NOT_FOUND if missing else Reason.CORRUPT, str(error))
    if error.errno in _FULL:
        return FetchError(Reason.NO_SPACE, f"{error}; give the model's cache more room")
    return FetchError(Reason.UNREACHABLE, f"the model's cache cannot be used: {error}")


def of_status(status: int, what: str) -> FetchError:
    """From an HTTP answer that is none of success."""
    if status in (401, 403):
        return FetchError(
            Reason.UNAUTHORIZED, f"{what}: access is refused ({status}); give credentials that may read it"
        )
    if status in (404, 410):
        return FetchError(Reason.NOT_FOUND, f"{what}: not found ({status}); check the address and the revision")
    if status == 416:
        return FetchError(Reason.CORRUPT, f"{what}: the file ends before it should, by what was listed (416)")
    if status == 408 or status == 429 or status >= 500:
        return FetchError(Reason.UNREACHABLE, f"{what}: the server answers {status}")
    return FetchError(Reason.INVALID_SOURCE, f"{what}: the server answers {status}; check the address")
