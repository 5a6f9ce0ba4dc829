"""The files of a checkpoint that a model is run from, and where in them what is no expert lies.

For one who cannot see the folder: the base ranges alone make files, with holes for experts, that `ExpertStore.open`
reads as it reads the whole ones. Does not know who sends them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

from emoe.core.errors import CheckpointError
from emoe.store.profile import CALIBRATION_FILE, LEARNED_FILE
from emoe.store.shards import INDEX_FILE
from emoe.store.store import ExpertStore

MAX_SMALL_FILE_BYTES = 256 * 1024 * 1024
"""Configurations and tokenizers are far smaller; whatever else lies in the folder is not sent along."""

BASE_ONLY_MARKER = ".emoe-base-only"
"""In a folder whose weight files have holes where the experts would be."""

_SUFFIXES = frozenset({".json", ".jinja", ".model", ".tiktoken"})
_NAMES = frozenset({"merges.txt", "vocab.txt", LEARNED_FILE, CALIBRATION_FILE})
_FOREIGN_INDEX = ".index.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByteRange:
    offset: int
    num_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """`base` in rising order, neither touching nor empty."""

    name: str
    num_bytes: int
    base: tuple[ByteRange, ...]


def is_small_file(name: str) -> bool:
    """Whether a file of this name is configuration, tokenizer or chat template: all but the weights that is needed."""
    if "/" in name or name.startswith(".") or (name.endswith(_FOREIGN_INDEX) and name != INDEX_FILE):
        return False
    return name in _NAMES or Path(name).suffix in _SUFFIXES


def list_files(store: ExpertStore) -> tuple[PublishedFile, ...]:
    """By name. CheckpointError when the folder cannot be read."""
    try:
        small = [_small_file(path) for path in store.folder.iterdir() if is_small_file(path.name) and path.is_file()]
    except OSError as error:
        raise CheckpointError(f"{store.folder}: cannot be listed ({error.strerror}); make it readable") from error
    weights = [_weight_file(store, name) for name in store.file_bytes]
    kept = [file for file in small if file.num_bytes <= MAX_SMALL_FILE_BYTES]
    return tuple(sorted((*kept, *weights), key=lambda file: file.name))


def _small_file(path: Path) -> PublishedFile:
    return PublishedFile(name=path.name, num_bytes=path.stat().st_size, base=tuple(_merged([(0, path.stat().st_size)])))


def _weight_file(store: ExpertStore, name: str) -> PublishedFile:
    header = (0, store.header_bytes(name))
    tensors = ((entry.offset, entry.num_bytes) for entry in store.base_tensors.values() if entry.file == name)
    return PublishedFile(name=name, num_bytes=store.file_bytes[name], base=tuple(_merged([header, *tensors])))


def _merged(runs: Iterable[tuple[int, int]]) -> Iterator[ByteRange]:
    begin = end = 0
    for offset, num_bytes in sorted(runs):
        if offset > end:
            yield ByteRange(offset=begin, num_bytes=end - begin)
            begin = offset
        end = max(end, offset + num_bytes)
    if end > begin:
        yield ByteRange(offset=begin, num_bytes=end - begin)
