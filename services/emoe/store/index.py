"""Every tensor of a checkpoint by key: from the headers alone, kept in a cache that later starts read instead.

The cache holds for as long as each file has the size and the time it had; then it is made anew. Which keys are experts
is found again from the names at each start, so a cache never disagrees with the code that reads it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from emoe.core.errors import CheckpointError
from emoe.store.headers import read_header
from emoe.store.reads import WeightFiles
from emoe.store.shards import Shards
from emoe.store.sidecar import Sidecar, cache_key
from emoe.store.tensors import FileStat, TensorEntry

VERSION = 1
CACHE_NAME = ".emoe-index.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorIndex:
    """`headers_sha256` covers names, files, places, shapes and dtypes; not the folder, nor any file's time."""

    stats: tuple[FileStat, ...]
    tensors: Mapping[str, TensorEntry]
    headers_sha256: str


def load_index(folder: Path, shards: Shards, files: WeightFiles, *, cache_dir: Path | None) -> TensorIndex:
    """From the cache where it still holds, else from the headers, and then cached."""
    stats = (*files.stats.values(), *_map_stat(shards))
    key = cache_key(str(folder.resolve()), stats)
    cache = Sidecar(folder, CACHE_NAME, cache_dir=cache_dir, key=key)
    for body in cache.bodies():
        index = from_body(body)
        if index is not None and index.stats == stats:
            return index
    index = build_index(folder, shards, files, stats)
    cache.write(to_body(index))
    return index


def build_index(folder: Path, shards: Shards, files: WeightFiles, stats: tuple[FileStat, ...]) -> TensorIndex:
    tensors: dict[str, TensorEntry] = {}
    for name in shards.files:
        read_at = partial(files.read_at, name)
        header = read_header(folder / name, num_bytes=files.stats[name].num_bytes, read_at=read_at)
        for key, entry in header.items():
            if shards.weight_map is not None and shards.weight_map.get(key, name) != name:
                continue
            if key in tensors:
                raise CheckpointError(
                    f"{folder / name}: {key} stands in {tensors[key].file} too, and {shards.source.name} names "
                    "neither; remove the file that does not belong here"
                )
            tensors[key] = entry
    _check_all_found(folder, shards, tensors)
    return TensorIndex(stats=stats, tensors=tensors, headers_sha256=_headers_sha256(tensors))


def to_body(index: TensorIndex) -> dict[str, object]:
    numbers = {stat.name: number for number, stat in enumerate(index.stats)}
    return {
        "version": VERSION,
        "files": index.stats,
        "headers_sha256": index.headers_sha256,
        "tensors": [
            [key, numbers[entry.file], entry.offset, entry.num_bytes, entry.shape, entry.dtype]
            for key, entry in index.tensors.items()
        ],
    }


def from_body(body: Mapping[str, object]) -> TensorIndex | None:
    """None for another version, or for what `to_body` never wrote."""
    if body.get("version") != VERSION:
        return None
    try:
        stats = tuple(FileStat(*stat) for stat in body["files"])  # type: ignore[attr-defined]
        tensors = {
            key: TensorEntry(
                file=stats[number].name, offset=offset, num_bytes=num_bytes, shape=tuple(shape), dtype=dtype
            )
            for key, number, offset, num_bytes, shape, dtype in body["tensors"]  # type: ignore[attr-defined]
        }
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    return TensorIndex(stats=stats, tensors=tensors, headers_sha256=str(body.get("headers_sha256")))


def _map_stat(shards: Shards) -> tuple[FileStat, ...]:
    """The list of shards decides which of two equal keys counts, so a change of it counts as well."""
    if shards.weight_map is None:
        return ()
    stat = shards.source.stat()
    return (FileStat(shards.source.name, stat.st_size, stat.st_mtime_ns),)


def _check_all_found(folder: Path, shards: Shards, tensors: Mapping[str, TensorEntry]) -> None:
    for key, name in (shards.weight_map or {}).items():
        if key not in tensors:
            raise CheckpointError(
                f"{folder / name}: {key} is missing, though {shards.source.name} places it here; "
                "fetch both files again from the same revision"
            )


def _headers_sha256(tensors: Mapping[str, TensorEntry]) -> str:
    digest = hashlib.sha256()
    for key, entry in sorted(tensors.items()):
        line = json.dumps([key, entry.file, entry.offset, entry.num_bytes, entry.shape, entry.dtype])
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()
