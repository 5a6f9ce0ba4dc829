"""Models on the Hugging Face hub, or on whatever HF_ENDPOINT names.

The hub's own client says which commit a revision is and what that holds; bytes come by ranged reads. A token is
HF_TOKEN's, or the one that the client finds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from emoe.loader.fetch.checksums import Checksum
from emoe.loader.fetch.failures import FetchError, Reason, of_status
from emoe.loader.fetch.remotes import Incoming, Listing, RemoteFile
from emoe.loader.fetch.web import open_session, read_from

API_SECONDS = 30.0
# The client speaks by httpx or its successor, of which only the error's root is the same for both.
_TRANSPORT_ERROR: type[Exception] = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")


class HubRemote:
    def __init__(self, repo: str) -> None:
        self._repo = repo
        self._endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")
        self._session = open_session(build_hf_headers(library_name="emoe"))

    async def list_files(self, revision: str | None) -> Listing:
        return await asyncio.to_thread(self._list_files, revision)

    @contextlib.asynccontextmanager
    async def open(self, file: RemoteFile, *, offset: int) -> AsyncIterator[Incoming]:
        url = hf_hub_url(self._repo, file.name, revision=file.version, endpoint=self._endpoint)
        async with read_from(self._session, url, offset=offset) as incoming:
            yield incoming

    async def close(self) -> None:
        await self._session.close()

    def _list_files(self, revision: str | None) -> Listing:
        what = f"{self._repo} at {self._endpoint}"
        try:
            api = HfApi(endpoint=self._endpoint, library_name="emoe")
            info = api.model_info(self._repo, revision=revision, timeout=API_SECONDS, files_metadata=True)
        except HFValidationError as error:
            raise FetchError(
                Reason.INVALID_SOURCE, f"{self._repo} is no name of a model: write hf://org/name"
            ) from error
        except GatedRepoError as error:
            raise FetchError(
                Reason.UNAUTHORIZED, f"{what} is gated: accept its terms, and give a token that may read it (HF_TOKEN)"
            ) from error
        except RepositoryNotFoundError as error:
            raise FetchError(
                Reason.NOT_FOUND, f"{what}: no such model, or a private one that needs a token (HF_TOKEN)"
            ) from error
        except RevisionNotFoundError as error:
            raise FetchError(Reason.NOT_FOUND, f"{what} has no revision {revision}") from error
        except HfHubHTTPError as error:
            raise of_status(error.response.status_code, what) from error
        except (_TRANSPORT_ERROR, OfflineModeIsEnabled) as error:
            raise FetchError(Reason.UNREACHABLE, f"{what}: {error}") from error
        if info.sha is None:
            raise FetchError(Reason.UNREACHABLE, f"{what}: the hub does not say which commit {revision or 'main'} is")
        return Listing(
            revision=info.sha, files=tuple(_parse_file(file, info.sha, what) for file in info.siblings or ())
        )


def _parse_file(file: RepoSibling, commit: str, what: str) -> RemoteFile:
    if file.size is None:
        raise FetchError(Reason.UNREACHABLE, f"{what}: the hub does not say how long {file.rfilename} is")
    checksum = None
    if file.lfs is not None:
        checksum = Checksum(kind="sha256", value=file.lfs.sha256)
    elif file.blob_id:
        checksum = Checksum(kind="git-sha1", value=file.blob_id)
    return RemoteFile(name=file.rfilename, num_bytes=file.size, checksum=checksum, version=commit)
