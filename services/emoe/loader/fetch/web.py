"""Models on any web server: a base URL under which the published names answer.

A web server lists nothing, so the names that matter are asked for one by one. Its ranged reads serve the hub as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping

import aiohttp

from emoe.loader.fetch.failures import FetchError, Reason, of_status
from emoe.loader.fetch.remotes import Incoming, Listing, RemoteFile
from emoe.store.shards import INDEX_FILE, SINGLE_FILE, parse_weight_map

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 30.0
"""A server that sends nothing for so long is taken for gone."""
MAX_INDEX_BYTES = 256 * 1024 * 1024
_AT_ONCE = 8

_OPTIONAL = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


def open_session(headers: Mapping[str, str] | None = None) -> aiohttp.ClientSession:
    """Bytes as they are stored, through the environment's proxies; credentials never follow to another host."""
    return aiohttp.ClientSession(
        headers={**(headers or {}), "Accept-Encoding": "identity"},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS),
        auto_decompress=False,
        # A signed address must arrive as it was signed.
        requote_redirect_url=False,
        trust_env=True,
    )


@contextlib.contextmanager
def transport_errors(what: str) -> Iterator[None]:
    """As FetchError: the connection, not the answer, was at fault."""
    try:
        yield
    except aiohttp.InvalidURL as error:
        raise FetchError(Reason.INVALID_SOURCE, f"{what}: this is no address: {error}") from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise FetchError(Reason.UNREACHABLE, f"{what}: {str(error) or 'the server fell silent'}") from error


@contextlib.asynccontextmanager
async def read_from(
    session: aiohttp.ClientSession, url: str, *, offset: int, version: str = ""
) -> AsyncIterator[Incoming]:
    """`version`: the ETag that the file was listed with, if it had one."""
    with transport_errors(url):
        response = await session.get(url, headers={"Range": f"bytes={offset}-"} if offset else {})
    try:
        if response.status not in (200, 206):
            raise of_status(response.status, url)
        if version and version_of(response.headers) not in ("", version):
            raise FetchError(Reason.UNREACHABLE, f"{url}: it was replaced while it was fetched")
        yield Incoming(offset=_begin(response, url), chunks=_chunks(response, url))
    finally:
        response.close()


class WebRemote:
    def __init__(self, base_url: str) -> None:
        self._base_url = base_url.rstrip("/") + "/"
        self._session = open_session()

    async def list_files(self, revision: str | None) -> Listing:  # noqa: ARG002 - a web server has but one
        """`revision` means nothing here: what is listed is what there is."""
        config, single, *optional = await self._ask_all(("config.json", SINGLE_FILE, *_OPTIONAL))
        if config is None:
            raise FetchError(
                Reason.NOT_FOUND, f"{self._base_url} has no config.json; give the address of a checkpoint's folder"
            )
        weights = [single] if single is not None else await self._shards()
        files = tuple(file for file in (config, *optional, *weights) if file is not None)
        return Listing(revision=digest_of(files), files=files)

    def open(self, file: RemoteFile, *, offset: int) -> contextlib.AbstractAsyncContextManager[Incoming]:
        return read_from(self._session, self._base_url + file.name, offset=offset, version=file.version)

    async def close(self) -> None:
        await self._session.close()

    async def _shards(self) -> list[RemoteFile | None]:
        index = await self._ask(INDEX_FILE)
        if index is None:
            raise FetchError(
                Reason.UNSUPPORTED,
                f"{self._base_url} has no {SINGLE_FILE} and no {INDEX_FILE}; emoe reads safetensors only",
            )
        names = sorted(set((await self._read_index(index)).values()))
        shards = await self._ask_all(names)
        for name, shard in zip(names, shards, strict=True):
            if shard is None:
                raise FetchError(Reason.NOT_FOUND, f"{self._base_url}{name}: missing, though {INDEX_FILE} names it")
        return [index, *shards]

    async def _read_index(self, index: RemoteFile) -> Mapping[str, str]:
        if index.num_bytes > MAX_INDEX_BYTES:
            raise FetchError(
                Reason.CORRUPT, f"{self._base_url}{INDEX_FILE} has {index.num_bytes} bytes; it is no index"
            )
        async with read_from(self._session, self._base_url + INDEX_FILE, offset=0) as incoming:
            raw = b"".join([chunk async for chunk in incoming.chunks])
        try:
            return parse_weight_map(raw)
        except ValueError as error:
            raise FetchError(Reason.CORRUPT, f"{self._base_url}{INDEX_FILE}: not valid ({error})") from error

    async def _ask_all(self, names: tuple[str, ...] | list[str]) -> list[RemoteFile | None]:
        places = asyncio.Semaphore(_AT_ONCE)

        async def ask(name: str) -> RemoteFile | None:
            async with places:
                return await self._ask(name)

        return await asyncio.gather(*map(ask, names))

    async def _ask(self, name: str) -> RemoteFile | None:
        """None when there is no such file. Not every server knows HEAD; the head of a GET's answer says the same."""
        url = self._base_url + name
        with transport_errors(url):
            for method in ("HEAD", "GET"):
                async with self._session.request(method, url, allow_redirects=True) as response:
                    if response.status in (404, 410):
                        return None
                    if response.status == 200 and response.content_length is not None:
                        version = version_of(response.headers)
                        return RemoteFile(name=name, num_bytes=response.content_length, version=version)
                    if method == "GET" or response.status not in (200, 405, 501):
                        break
        if response.status != 200:
            raise of_status(response.status, url)
        raise FetchError(Reason.INVALID_SOURCE, f"{url}: the server does not say how long it is")


def version_of(headers: Mapping[str, str]) -> str:
    """A strong ETag; empty where there is none."""
    etag = headers.get("ETag", "")
    return "" if etag.startswith("W/") else etag


def digest_of(files: tuple[RemoteFile, ...]) -> str:
    """What stands for a revision where the source has none: another listing is another revision."""
    listed = [[file.name, file.num_bytes, file.version] for file in sorted(files, key=lambda file: file.name)]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _begin(response: aiohttp.ClientResponse, url: str) -> int:
    if response.status == 200:
        return 0
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is None:
        raise FetchError(Reason.UNREACHABLE, f"{url}: the server sent a part and did not say which")
    return int(match[1])


async def _chunks(response: aiohttp.ClientResponse, url: str) -> AsyncIterator[bytes]:
    with transport_errors(url):
        # As it comes: a larger buffer would be lost, unread, with a connection that breaks.
        async for chunk in response.content.iter_any():
            yield chunk
