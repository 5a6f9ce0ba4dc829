"""Models in S3, or in anything that speaks as it does: a bucket and a prefix.

Credentials, region and endpoint are the environment's (AWS_*). An object is pinned by its ETag while it is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import PurePosixPath
from typing import Any

import aiohttp
import s3fs
from botocore.exceptions import (  # type: ignore[import-untyped]
    BotoCoreError,
    NoCredentialsError,
    PartialCredentialsError,
)

from emoe.loader.fetch.checksums import Checksum
from emoe.loader.fetch.failures import FetchError, Reason
from emoe.loader.fetch.remotes import Incoming, Listing, RemoteFile
from emoe.loader.fetch.web import CONNECT_SECONDS, SILENCE_SECONDS, digest_of

_AT_ONCE = 8
_CHUNK_BYTES = 1 << 16
"""Twice as much is buffered, and lost with a connection that breaks."""
_ETAG = re.compile(r"[0-9a-f]{32}(?:-(\d+))?")
_DIRECTORY_BUCKET = "--x-s3"
"""Of such a bucket an ETag is no MD5."""


class BucketRemote:
    def __init__(self, bucket: str, prefix: str, *, is_wanted: Any) -> None:
        """`is_wanted`: name -> whether its checksum is worth a question."""
        self._bucket = bucket
        self._prefix = prefix.strip("/")
        self._is_wanted = is_wanted
        self._files: Any = s3fs.S3FileSystem(
            asynchronous=True,
            skip_instance_cache=True,
            config_kwargs={"connect_timeout": CONNECT_SECONDS, "read_timeout": SILENCE_SECONDS},
        )

    async def list_files(self, revision: str | None) -> Listing:  # noqa: ARG002 - the listing is the revision
        with _s3_errors(self._url):
            found = await self._files._ls(
                "/".join(filter(None, (self._bucket, self._prefix))), detail=True, refresh=True
            )
        listed = [
            RemoteFile(name=PurePosixPath(entry["name"]).name, num_bytes=entry["size"], version=entry.get("ETag", ""))
            for entry in found
            if entry["type"] == "file"
        ]
        if not listed:
            raise FetchError(Reason.NOT_FOUND, f"{self._url}: nothing is there; check bucket and prefix")
        wanted = tuple(file for file in listed if self._is_wanted(file.name))
        places = asyncio.Semaphore(_AT_ONCE)
        files = await asyncio.gather(*(self._with_checksum(file, places) for file in wanted))
        return Listing(revision=digest_of(wanted), files=tuple(files))

    @contextlib.asynccontextmanager
    async def open(self, file: RemoteFile, *, offset: int) -> AsyncIterator[Incoming]:
        ranged = {"Range": f"bytes={offset}-"} if offset else {}
        pinned = {"IfMatch": file.version} if file.version else {}
        url = f"{self._url}/{file.name}"
        with _s3_errors(url):
            answer = await self._ask("get_object", file.name, **ranged, **pinned)
        body = answer["Body"]
        try:
            yield Incoming(offset=offset, chunks=_chunks(body, url))
        finally:
            body.close()

    async def close(self) -> None:
        if self._files._s3 is not None:
            await self._files._s3.close()

    @property
    def _url(self) -> str:
        return "/".join(filter(None, (f"s3://{self._bucket}", self._prefix)))

    async def _ask(self, method: str, name: str, **parameters: object) -> Any:
        key = "/".join(filter(None, (self._prefix, name)))
        return await self._files._call_s3(method, Bucket=self._bucket, Key=key, **parameters)

    async def _with_checksum(self, file: RemoteFile, places: asyncio.Semaphore) -> RemoteFile:
        async with places:
            with _s3_errors(f"{self._url}/{file.name}"):
                checksum = await self._checksum(file)
        return RemoteFile(name=file.name, num_bytes=file.num_bytes, checksum=checksum, version=file.version)

    async def _checksum(self, file: RemoteFile) -> Checksum | None:
        """From the ETag, where it is an MD5: neither under a key of one's own nor under KMS."""
        match = _ETAG.fullmatch(file.version.strip('"'))
        if match is None or self._bucket.endswith(_DIRECTORY_BUCKET) or match[1] == "1":
            return None
        head = await self._ask("head_object", file.name, **({"PartNumber": 1} if match[1] else {}))
        if head.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in head:
            return None
        if match[1] is None:
            return Checksum(kind="md5", value=match[0])
        part_bytes = head["ContentLength"]
        is_even = part_bytes and -(-file.num_bytes // part_bytes) == int(match[1])
        return Checksum(kind="md5-parts", value=match[0], part_bytes=part_bytes) if is_even else None


@contextlib.contextmanager
def _s3_errors(what: str) -> Iterator[None]:
    """As FetchError. The library's own are the system's errors, after what S3 said."""
    try:
        yield
    except FileNotFoundError as error:
        raise FetchError(Reason.NOT_FOUND, f"{what}: not found; check bucket and prefix") from error
    except (PermissionError, NoCredentialsError, PartialCredentialsError) as error:
        raise FetchError(
            Reason.UNAUTHORIZED, f"{what}: access is refused ({error}); give credentials that may read it (AWS_*)"
        ) from error
    except (OSError, BotoCoreError, aiohttp.ClientError) as error:
        raise FetchError(Reason.UNREACHABLE, f"{what}: {str(error) or 'the server fell silent'}") from error


async def _chunks(body: Any, url: str) -> AsyncIterator[bytes]:
    with _s3_errors(url):
        while chunk := await body.read(_CHUNK_BYTES):
            yield chunk
