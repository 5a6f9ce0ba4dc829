"""A checkpoint's files made again from the loader's base ranges: whole but for the experts, which stay holes.

For a worker that does not see the checkpoint: config, tokenizer and base tensors are then read as from any folder, and
experts are pulled. A file has its name only once its checksum was right.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path, PurePosixPath
from typing import Any

import grpc
import xxhash

from emoe.core.errors import CheckpointError
from emoe.runtime.grids import ModelId, model_to_proto
from emoe.store.published import BASE_ONLY_MARKER
from emoe.v1 import loader_pb2 as pb
from emoe.worker.loader_source import MAX_DAMAGED, RETRY_SECONDS, WORTH_ANOTHER_TRY

log = logging.getLogger(__name__)


class _DamagedError(Exception):
    """Bytes that are not those that the loader read; sent again they may be."""


async def recreate(stub: Any, model: ModelId, folder: Path) -> None:
    """Until every file is there, however often the loader goes: the caller sets the deadline.

    CheckpointError when the loader refuses, or sends what cannot be."""
    await asyncio.to_thread(_make_folder, folder)
    request = pb.ListFilesRequest(model=model_to_proto(model))
    listing = await insist("list its files", lambda: stub.ListFiles(request, wait_for_ready=True))
    for file in listing.files:
        _check_name(file.name)
        if not _is_here(folder / file.name, file.num_bytes):
            await _fetch(stub, model, file, folder)


async def _fetch(stub: Any, model: ModelId, file: pb.CheckpointFile, folder: Path) -> None:
    for num_damaged in range(1, MAX_DAMAGED + 1):
        try:
            await insist(f"send {file.name}", lambda: _receive(stub, model, file, folder))
        except _DamagedError as error:
            log.warning("%s (%d. time)", error, num_damaged)
        else:
            return
    raise CheckpointError(f"{file.name} arrived damaged {MAX_DAMAGED} times in turn; check the network")


async def insist(what: str, ask: Callable[[], Awaitable[Any]]) -> Any:
    """Again and again while the loader is away."""
    while True:
        try:
            return await ask()
        except grpc.aio.AioRpcError as error:
            if error.code() not in WORTH_ANOTHER_TRY:
                raise CheckpointError(f"the loader will not {what}: {error.details()}") from error
            log.info("the loader does not %s now (%s); trying again", what, error.details())
        await asyncio.sleep(RETRY_SECONDS)


async def _receive(stub: Any, model: ModelId, file: pb.CheckpointFile, folder: Path) -> None:
    partial = folder / f".{file.name}.{os.getpid()}"
    try:
        with partial.open("wb") as stream:
            stream.truncate(file.num_bytes)
            await _fill(stub.ReadFile(pb.ReadFileRequest(model=model_to_proto(model), name=file.name)), file, stream)
            stream.flush()
            await asyncio.to_thread(os.fsync, stream.fileno())
        partial.replace(folder / file.name)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


async def _fill(call: Any, file: pb.CheckpointFile, stream: Any) -> None:
    hasher, num_bytes, end = xxhash.xxh3_64(), 0, 0
    try:
        async for piece in call:
            if piece.last:
                wanted = sum(run.num_bytes for run in file.base)
                if num_bytes != wanted or hasher.intdigest() != piece.xxh3:
                    raise _DamagedError(f"{file.name} arrived damaged: {num_bytes} of {wanted} bytes, or others")
                return
            if not end <= piece.offset <= file.num_bytes - len(piece.data):
                raise CheckpointError(f"the loader sent byte {piece.offset} of {file.name} out of its place")
            hasher.update(piece.data)
            await asyncio.to_thread(os.pwrite, stream.fileno(), piece.data, piece.offset)
            num_bytes, end = num_bytes + len(piece.data), piece.offset + len(piece.data)
    finally:
        call.cancel()
    raise _DamagedError(f"{file.name} ended after {num_bytes} bytes")


def _make_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / BASE_ONLY_MARKER).touch()


def _check_name(name: str) -> None:
    if name in {"", ".", ".."} or name.startswith(".") or PurePosixPath(name).name != name or "\0" in name:
        raise CheckpointError(f"the loader lists {name!r:.100}, which is no file of a checkpoint's folder")


def _is_here(path: Path, num_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == num_bytes
