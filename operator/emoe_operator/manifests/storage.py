"""Where the model's files lie: which volumes hold them, who mounts them, and which claims are ours.

Three cases. demo://: in the images. pvc://: in a claim that somebody else filled, read by loader and workers at one
path. All else: the loader fetches into its cache; if several nodes can mount that cache, workers read it as well, else
they stream from the loader.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from emoe.api.names import Component
from emoe.api.services import Cache, Storage
from emoe_operator.desired import Manifest
from emoe_operator.manifests.context import Context
from emoe_operator.manifests.identity import child_name, manifest

CACHE_PATH = "/var/cache/emoe"
STATE_PATH = "/var/lib/emoe"
CLAIM_ROOT = "/var/lib/emoe-claims"
"""pvc://CLAIM/PATH is read at CLAIM_ROOT/CLAIM/PATH, in the loader and in the workers."""
_SCHEMES_WITHOUT_CACHE = frozenset({"demo", "pvc"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mounted:
    """Volumes of a pod, and where its container sees them."""

    volumes: tuple[dict[str, Any], ...] = ()
    mounts: tuple[dict[str, Any], ...] = ()

    def __add__(self, other: Mounted) -> Mounted:
        return Mounted(volumes=self.volumes + other.volumes, mounts=self.mounts + other.mounts)


def mounted(name: str, source: dict[str, Any], path: str, *, read_only: bool = False) -> Mounted:
    mount: dict[str, Any] = {"name": name, "mountPath": path}
    return Mounted(volumes=({"name": name, **source},), mounts=({**mount, "readOnly": True} if read_only else mount,))


def loader_storage(context: Context) -> Mounted:
    return mounted("model-cache", _cache_volume(context), CACHE_PATH) + _source_claim(context)


def worker_storage(context: Context) -> Mounted:
    """A folder of its own, and the model's files where they can be seen from any node."""
    own = mounted("state", {"emptyDir": {}}, STATE_PATH)
    if _is_shared(_cache(context)):
        return own + mounted("model-cache", _cache_volume(context), CACHE_PATH, read_only=True)
    return own + _source_claim(context)


def loader_source(context: Context) -> str:
    """What the loader is told: a claim is a folder to it."""
    source = context.spec.model.parsed_source
    return f"{CLAIM_ROOT}/{source.root}/{source.path}".rstrip("/") if source.is_claim else context.spec.model.source


def predictor_storage(context: Context) -> Mounted:
    if context.spec.services.predictor.storage is None:
        return mounted("state", {"emptyDir": {}}, STATE_PATH)
    return mounted("state", _claim_volume(child_name(context.resource, "predictor")), STATE_PATH)


def scheduler_storage() -> Mounted:
    """What it learnt outlives its container, not its pod: another scheduler may have learnt more."""
    return mounted("state", {"emptyDir": {}}, STATE_PATH)


def claims(context: Context) -> list[Manifest]:
    """A retained cache has no owner, so that it outlives the resource; the predictor's learning does not."""
    made, cache, learning = [], _cache(context), context.spec.services.predictor.storage
    if cache and cache.size:
        storage = Storage(size=cache.size, storage_class_name=cache.storage_class_name)
        mode = cache.access_mode or "ReadWriteOnce"
        made.append(_claim(context, "loader", _cache_claim(context), storage, access_mode=mode, owned=not cache.retain))
    if learning:
        name = child_name(context.resource, "predictor")
        made.append(_claim(context, "predictor", name, learning, access_mode="ReadWriteOnce", owned=True))
    return made


def _cache(context: Context) -> Cache | None:
    """None where nothing is fetched."""
    return None if context.spec.model.parsed_source.scheme in _SCHEMES_WITHOUT_CACHE else context.spec.cache


def _is_shared(cache: Cache | None) -> bool:
    return cache is not None and bool(cache.claim_name or cache.host_path or cache.access_mode == "ReadWriteMany")


def _cache_volume(context: Context) -> dict[str, Any]:
    cache = _cache(context)
    if cache is None:
        return {"emptyDir": {}}
    if cache.host_path:
        return {"hostPath": {"path": cache.host_path, "type": "DirectoryOrCreate"}}
    return _claim_volume(cache.claim_name or _cache_claim(context))


def _cache_claim(context: Context) -> str:
    return f"{context.resource.name}-cache"


def _claim_volume(name: str) -> dict[str, Any]:
    return {"persistentVolumeClaim": {"claimName": name}}


def _source_claim(context: Context) -> Mounted:
    source = context.spec.model.parsed_source
    if not source.is_claim:
        return Mounted()
    return mounted("model-source", _claim_volume(source.root), f"{CLAIM_ROOT}/{source.root}", read_only=True)


def _claim(
    context: Context, component: Component, name: str, storage: Storage, *, access_mode: str, owned: bool
) -> Manifest:
    spec: dict[str, Any] = {
        "accessModes": [access_mode],
        "resources": {"requests": {"storage": str(storage.size)}},
    }
    if storage.storage_class_name is not None:
        spec["storageClassName"] = storage.storage_class_name
    return manifest(
        context.resource,
        api_version="v1",
        kind="PersistentVolumeClaim",
        name=name,
        component=component,
        owned=owned,
        spec=spec,
    )
