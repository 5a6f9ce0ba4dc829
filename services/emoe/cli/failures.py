"""What ends a command with one clear line and exit status 1."""

from __future__ import annotations


class CommandError(Exception):
    """The message says what went wrong and what to do; it is all that the user sees."""


class RemoteError(CommandError):
    """A service refused or failed the request. `code` is the gRPC status' name."""

    def __init__(self, message: str, *, code: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_seconds = retry_after_seconds
