"""Which files a worker reads, and where its experts come from: its own folder, the loader's if it is seen here, or a
copy without experts.

Decided once at start. Knows the loader's contract and the store; not the engine.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from emoe.core.errors import CheckpointError, NotReadyError, UnsupportedModelError
from emoe.runtime.channels import open_channel
from emoe.runtime.grids import ModelId
from emoe.store.published import BASE_ONLY_MARKER
from emoe.store.sidecar import default_cache_dir
from emoe.store.store import ExpertStore
from emoe.v1 import loader_pb2 as pb
from emoe.v1 import loader_pb2_grpc
from emoe.worker.base_files import insist, recreate
from emoe.worker.loader_source import LoaderSource
from emoe.worker.model_watch import wait_until_ready
from emoe.worker.settings import WorkerSettings
from emoe.worker.sources import ExpertSource, LocalSource

log = logging.getLogger(__name__)

GET_MODEL_SECONDS = 10.0


async def open_checkpoint(settings: WorkerSettings) -> tuple[ExpertStore, ExpertSource]:
    """NotReadyError when the loader has no model within `start_timeout_seconds`."""
    if settings.model is not None:
        store = await asyncio.to_thread(ExpertStore.open, settings.model, cache_dir=settings.cache_dir)
        return store, _own_source(settings, store)
    assert settings.loader is not None, "settings have one of them"
    try:
        async with asyncio.timeout(settings.start_timeout_seconds), open_channel(settings.loader) as channel:
            return await _from_loader(settings, settings.loader, loader_pb2_grpc.LoaderServiceStub(channel))
    except TimeoutError:
        raise NotReadyError(
            f"the loader at {settings.loader} gave no model within {settings.start_timeout_seconds:g} s; its own log "
            "and WatchModel say why"
        ) from None


def _own_source(settings: WorkerSettings, store: ExpertStore) -> ExpertSource:
    wants_loader = settings.expert_source == "loader" or (settings.expert_source == "auto" and not _is_whole(store))
    if not wants_loader:
        return LocalSource(store)
    if settings.loader is None:
        raise ValueError("expert_source is loader, but no loader is given: set --loader host:port")
    return LoaderSource(settings.loader, _id(store))


async def _from_loader(settings: WorkerSettings, loader: str, stub: Any) -> tuple[ExpertStore, ExpertSource]:
    model = await wait_until_ready(stub)
    if settings.expert_source != "loader" and (seen := await _open_seen(settings, stub, model)):
        return seen, LocalSource(seen)
    if settings.expert_source == "local":
        raise CheckpointError(
            f"the files of model {model.digest} are not here; mount them, or set expert_source to auto"
        )
    folder = _cache_folder(settings) / "base" / model.digest
    log.info("the loader's files are not seen here: base files go to %s, experts are pulled", folder)
    await recreate(stub, model, folder)
    store = await asyncio.to_thread(ExpertStore.open, folder, cache_dir=settings.cache_dir)
    if store.digest != model.digest:
        store.close()
        raise CheckpointError(f"{folder} is not model {model.digest}, which the loader has; remove the folder")
    return store, LoaderSource(loader, model)


async def _open_seen(settings: WorkerSettings, stub: Any, model: ModelId) -> ExpertStore | None:
    """The loader's folder, if it is here too, with the same model in it."""
    request = pb.GetModelRequest()
    answer = await insist("name its folder", lambda: stub.GetModel(request, timeout=GET_MODEL_SECONDS))
    folder = Path(answer.path)
    if not await asyncio.to_thread(folder.is_dir):
        return None
    try:
        store = await asyncio.to_thread(ExpertStore.open, folder, cache_dir=settings.cache_dir)
    except (CheckpointError, UnsupportedModelError) as error:
        log.info("%s is here, but not as the loader has it: %s", folder, error)
        return None
    if store.digest == model.digest and _is_whole(store):
        log.info("reading %s, as the loader does", folder)
        return store
    store.close()
    return None


def _cache_folder(settings: WorkerSettings) -> Path:
    folder = settings.cache_dir or default_cache_dir()
    if folder is None:
        raise ValueError("there is no home to keep the model's base files in: set --cache-dir to a folder")
    return folder


def _is_whole(store: ExpertStore) -> bool:
    return not (store.folder / BASE_ONLY_MARKER).exists()


def _id(store: ExpertStore) -> ModelId:
    return ModelId(digest=store.digest, family=store.family)
