"""What a place that models are fetched from can do (the `Remote` seam): say which files it has, and send one.

hub, buckets and web are its implementations; whoever fetches knows no more of them than this.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Protocol

from emoe.loader.fetch.checksums import Checksum


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """`checksum` is None where the source publishes none; `version` (an ETag, a commit) pins what was listed."""

    name: str
    num_bytes: int
    checksum: Checksum | None = None
    version: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """`revision`: the commit where there is one, else a digest of what is listed."""

    revision: str
    files: tuple[RemoteFile, ...]


@dataclasses.dataclass(frozen=True)
class Incoming:
    """The bytes of a file from `offset` on, which is 0 where the source cannot begin in the middle."""

    offset: int
    chunks: AsyncIterator[bytes]


class Remote(Protocol):
    """Both raise FetchError, `Unreachable` for a connection that breaks; so do the chunks. Close it at the end."""

    async def list_files(self, revision: str | None) -> Listing:
        """`revision` as it was asked for, or the commit that it was resolved to before."""
        ...

    def open(self, file: RemoteFile, *, offset: int) -> contextlib.AbstractAsyncContextManager[Incoming]:
        """Of a file with at least one byte beyond `offset`."""
        ...

    async def close(self) -> None: ...
