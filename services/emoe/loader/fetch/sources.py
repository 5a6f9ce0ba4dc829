"""What a source's address means: `hf://org/name`, `s3://bucket/prefix`, `http(s)://host/path/`, `demo://` or a folder.

Read once at start. An address that can never work is an InvalidSource, said by WatchModel like any other failure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from emoe.core.errors import CheckpointError
from emoe.loader.fetch.failures import FetchError, Reason
from emoe.loader.fetch.remotes import Remote
from emoe.store.published import is_small_file
from emoe.store.shipped import shipped_model

FORMS = "hf://org/name, s3://bucket/prefix, https://host/path/, demo:// or the path of a folder"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderSource:
    """Files that are here already."""

    folder: Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoteSource:
    """`open` brings in the library that the source needs, and nothing else does."""

    address: str
    has_revisions: bool
    open: Callable[[], Remote]


def parse_source(address: str) -> FolderSource | RemoteSource:
    """FetchError (InvalidSource) for anything else."""
    if address.startswith("/"):
        return FolderSource(folder=Path(address))
    scheme, mark, rest = address.partition("://")
    if mark and scheme in _PARSERS:
        return _PARSERS[scheme](address, rest)
    raise _invalid(address, f"a source is one of {FORMS}")


def is_wanted(name: str) -> bool:
    """Whether a file of this name may be needed; which weights are, the index says."""
    return is_small_file(name) or ("/" not in name and name.endswith(".safetensors"))


def _parse_demo(address: str, rest: str) -> FolderSource:
    if rest:
        raise _invalid(address, "demo:// is all of it: one model ships")
    try:
        return FolderSource(folder=shipped_model())
    except CheckpointError as error:
        raise FetchError(Reason.NOT_FOUND, str(error)) from error


def _parse_hub(address: str, rest: str) -> RemoteSource:
    if rest.count("/") != 1 or not all(rest.split("/")):
        raise _invalid(address, "write hf://org/name")

    def connect() -> Remote:
        from emoe.loader.fetch.hub import HubRemote

        return HubRemote(rest)

    return RemoteSource(address=address, has_revisions=True, open=connect)


def _parse_bucket(address: str, rest: str) -> RemoteSource:
    bucket, _, prefix = rest.partition("/")
    if not bucket:
        raise _invalid(address, "write s3://bucket/prefix")

    def connect() -> Remote:
        from emoe.loader.fetch.buckets import BucketRemote

        return BucketRemote(bucket, prefix, is_wanted=is_wanted)

    return RemoteSource(address=address, has_revisions=False, open=connect)


def _parse_web(address: str, _rest: str) -> RemoteSource:
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018 - read for its check
    except ValueError as error:
        raise _invalid(address, str(error)) from error
    if not parts.hostname or parts.query or parts.fragment or parts.username is not None:
        # Said without the address, which may have a password in it.
        raise FetchError(
            Reason.INVALID_SOURCE, f"a {parts.scheme}:// source is host and path: no user, no query, no fragment"
        )

    def connect() -> Remote:
        from emoe.loader.fetch.web import WebRemote

        return WebRemote(address)

    return RemoteSource(address=address, has_revisions=False, open=connect)


def _invalid(address: str, why: str) -> FetchError:
    return FetchError(Reason.INVALID_SOURCE, f"{address:.200}: {why}")


_PARSERS: dict[str, Callable[[str, str], FolderSource | RemoteSource]] = {
    "demo": _parse_demo,
    "hf": _parse_hub,
    "s3": _parse_bucket,
    "http": _parse_web,
    "https": _parse_web,
}
