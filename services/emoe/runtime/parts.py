"""A file that travels as a stream of messages: cut here, put together there, never beyond a bound."""

from __future__ import annotations

from collections.abc import Iterator

from emoe.core.errors import InvalidRequestError

PART_BYTES = 1024 * 1024
MAX_PROFILE_BYTES = 64 * 1024 * 1024
"""61 layers of 256 experts and 64 tasks take 18 MB."""


def parts(data: bytes) -> Iterator[bytes]:
    """In their order; none of an empty file."""
    for offset in range(0, len(data), PART_BYTES):
        yield data[offset : offset + PART_BYTES]


class Gathered:
    """What came so far. `what` names it in the error for a file that is too large."""

    def __init__(self, what: str, *, max_bytes: int) -> None:
        self._what = what
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        self._num_bytes = 0

    def add(self, part: bytes) -> None:
        self._num_bytes += len(part)
        if self._num_bytes > self._max_bytes:
            raise InvalidRequestError(f"{self._what} has more than {self._max_bytes} bytes, the most that is taken")
        self._parts.append(part)

    def whole(self) -> bytes:
        return b"".join(self._parts)
