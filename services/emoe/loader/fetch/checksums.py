"""The checksums that sources publish for their files, computed over a stream of bytes.

A hub has SHA-256 for large files and git's blob hash for small ones; an object store MD5, of the whole or of the parts
it was uploaded in. Knows no source.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Literal, Protocol

Kind = Literal["sha256", "git-sha1", "md5", "md5-parts"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checksum:
    """`part_bytes`: of every part but the last; md5-parts only."""

    kind: Kind
    value: str
    part_bytes: int = 0


class Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


class _Md5OfParts:
    """An object store's ETag of a multipart upload: MD5 over the parts' MD5s, a dash, their number."""

    def __init__(self, part_bytes: int) -> None:
        self._part_bytes = part_bytes
        self._room = part_bytes
        self._part = _md5()
        self._ended: list[bytes] = []

    def update(self, data: bytes, /) -> None:
        view = memoryview(data)
        while view:
            if not self._room:
                self._end_part()
            piece, view = view[: self._room], view[self._room :]
            self._part.update(piece)
            self._room -= len(piece)

    def hexdigest(self) -> str:
        parts = [*self._ended, self._part.digest()]
        return f"{_md5(b''.join(parts)).hexdigest()}-{len(parts)}"

    def _end_part(self) -> None:
        self._ended.append(self._part.digest())
        self._part, self._room = _md5(), self._part_bytes


def start_digest(checksum: Checksum, *, num_bytes: int) -> Digest:
    """`num_bytes`: of the whole file, which git's hash begins with."""
    if checksum.kind == "git-sha1":
        return hashlib.sha1(b"blob %d\0" % num_bytes, usedforsecurity=False)
    if checksum.kind == "md5-parts":
        return _Md5OfParts(checksum.part_bytes)
    return hashlib.sha256() if checksum.kind == "sha256" else _md5()


def _md5(data: bytes = b"") -> hashlib._Hash:
    return hashlib.md5(data, usedforsecurity=False)
