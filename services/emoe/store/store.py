"""The checkpoint as published: experts and base tensors by name, read where they lie, each byte accounted for.

The loader and the worker read experts through this, the worker its base tensors too; `emoe inspect` only looks.
Nothing is converted, mapped or kept in memory but the index. Does not know who asks, nor what becomes of the bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import xxhash

from emoe.core.errors import InvalidRequestError
from emoe.core.experts import ExpertGrid, ExpertId
from emoe.store.catalog import Catalog, build_catalog
from emoe.store.config import Config
from emoe.store.families import ModelShape, parse_shape
from emoe.store.headers import LENGTH_BYTES, header_end
from emoe.store.index import TensorIndex, load_index
from emoe.store.integrity import IntegrityLedger
from emoe.store.layout import ExpertLayout
from emoe.store.linears import QuantisedLinear
from emoe.store.quantisation import Quantisation
from emoe.store.reads import ReadTotals, WeightFiles, device_bytes_read
from emoe.store.shards import find_shards
from emoe.store.sidecar import default_cache_dir
from emoe.store.tensors import Extent, TensorEntry

FINGERPRINT_BYTES = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadCounters:
    """Totals of finished reads since the store was opened: of experts, but for the last.

    `num_device_bytes` is what storage delivered to the whole process meanwhile, page cache not counted; None where the
    system does not tell.
    """

    num_bytes_asked: int
    num_reads: int
    num_device_bytes: int | None


class ExpertStore:
    """Any number of threads may read at once. Close it, or use it in a `with` statement."""

    def __init__(
        self,
        *,
        config: Config,
        shape: ModelShape,
        catalog: Catalog,
        files: WeightFiles,
        ledger: IntegrityLedger,
        digest: str,
    ) -> None:
        self.folder: Path = config.path.parent
        self.config: Mapping[str, object] = config.values
        self.family: str = shape.family
        self.digest: str = digest
        self.layout: ExpertLayout = catalog.layout
        self.dtype: str = catalog.dtype
        self.quantisation: Quantisation | None = shape.quantisation
        self.has_expert_biases: bool = shape.has_biases
        self.base_tensors: Mapping[str, TensorEntry] = catalog.base_tensors
        self.base_linears: Mapping[str, QuantisedLinear] = catalog.base_linears
        self.grid: ExpertGrid = ExpertGrid(
            num_layers=shape.num_layers,
            moe_layers=shape.moe_layers,
            rule=shape.rule,
            expert_bytes=catalog.layout.num_bytes,
        )
        self.file_bytes: Mapping[str, int] = {name: stat.num_bytes for name, stat in files.stats.items()}
        """Weight file -> its size."""
        self._extents = catalog.extents
        self._files = files
        self._ledger = ledger
        self._lock = threading.Lock()
        self._expert_reads = ReadTotals()
        self._device_bytes_before = device_bytes_read()

    @classmethod
    def open(cls, folder: Path, *, cache_dir: Path | None = None) -> Self:
        """Reads config.json and headers, or the cached index; no weights.

        What is ours to keep goes beside the checkpoint, or to `cache_dir` where that cannot be written; without one,
        to `emoe` in the user's cache folder.

        UnsupportedModelError for a model that emoe cannot serve, CheckpointError for files that are not whole.
        """
        cache_dir = cache_dir or default_cache_dir()
        config = Config.read(folder)
        shape = parse_shape(config)
        shards = find_shards(folder)
        files = WeightFiles(folder, shards.files, named_by=shards.who_names)
        try:
            index = load_index(folder, shards, files, cache_dir=cache_dir)
            catalog = build_catalog(index.tensors, shape, source=shards.source)
            digest = _digest(config, index)
            ledger = IntegrityLedger.open(
                folder, extents=catalog.extents, stats=files.stats, digest=digest, cache_dir=cache_dir
            )
        except BaseException:
            files.close()
            raise
        return cls(config=config, shape=shape, catalog=catalog, files=files, ledger=ledger, digest=digest)

    def read_into(self, expert: ExpertId, buffer: memoryview) -> None:
        """Fills `buffer`, which has exactly `layout.num_bytes`. After an error its content means nothing.

        CheckpointError when the bytes cannot be had, or are not those that were read the first time.
        """
        data = _writable(buffer, self.layout.num_bytes)
        totals = self._files.read(self._extents_of(expert), data)
        with self._lock:
            self._expert_reads += totals
        self._ledger.check(expert, data)

    def read(self, expert: ExpertId) -> bytes:
        buffer = bytearray(self.layout.num_bytes)
        self.read_into(expert, memoryview(buffer))
        return bytes(buffer)

    def extents(self, expert: ExpertId) -> tuple[Extent, ...]:
        """Where the expert's bytes lie, in the order in which a read puts them end to end."""
        return self._extents_of(expert)

    def checksum(self, expert: ExpertId, buffer: memoryview | bytes) -> int:
        """What a transfer of this expert carries along: see `xxh3_64`."""
        if memoryview(buffer).nbytes != self.layout.num_bytes:
            raise ValueError(f"{expert} has {self.layout.num_bytes} bytes, not {memoryview(buffer).nbytes}")
        return xxh3_64(buffer)

    def read_tensor_into(self, key: str, buffer: memoryview) -> None:
        """Fills `buffer` with a base tensor's bytes, as stored."""
        entry = self._base_entry(key)
        extent = Extent(key, entry.file, entry.offset, entry.num_bytes)
        self._files.read([extent], _writable(buffer, entry.num_bytes))

    def fingerprint(self) -> str:
        """Tells weights apart that have the same shapes: hashed are the first bytes of each tensor outside the experts.

        What was measured on one set of weights (a profile, a calibration) does not hold for a fine-tuned one.
        """
        hashed = hashlib.sha256(self.digest.encode())
        for key, entry in sorted(self.base_tensors.items()):
            hashed.update(key.encode())
            hashed.update(self._files.read_at(entry.file, min(entry.num_bytes, FINGERPRINT_BYTES), entry.offset))
        return hashed.hexdigest()

    def header_bytes(self, file: str) -> int:
        """Where the first tensor of a weight file begins."""
        return header_end(self._files.read_at(file, LENGTH_BYTES, 0))

    @property
    def counters(self) -> ReadCounters:
        now, before = device_bytes_read(), self._device_bytes_before
        with self._lock:
            return ReadCounters(
                num_bytes_asked=self._expert_reads.num_bytes_asked,
                num_reads=self._expert_reads.num_reads,
                num_device_bytes=None if now is None or before is None else now - before,
            )

    def close(self) -> None:
        """Reads under way end first; later ones are errors. Safe to call twice."""
        self._ledger.flush()
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _extents_of(self, expert: ExpertId) -> tuple[Extent, ...]:
        extents = self._extents.get(expert)
        if extents is None:
            layers = ", ".join(map(str, self.grid.moe_layers))
            raise InvalidRequestError(
                f"layer {expert.layer}, expert {expert.index} is not in this model, which has "
                f"{self.grid.rule.num_experts} experts in each of the layers {layers}"
            )
        return extents

    def _base_entry(self, key: str) -> TensorEntry:
        entry = self.base_tensors.get(key)
        if entry is None:
            raise InvalidRequestError(
                f"{key!r} is not a base tensor of {self.folder}; see base_tensors for those that are"
            )
        return entry


def xxh3_64(buffer: memoryview | bytes) -> int:
    """The fast checksum (seed 0) that guards every transfer of bytes between processes."""
    return xxhash.xxh3_64_intdigest(buffer)


def _digest(config: Config, index: TensorIndex) -> str:
    """Tells models apart by config.json and headers; the same in any folder and for any order of config keys."""
    canonical = json.dumps(config.values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{canonical}\n{index.headers_sha256}".encode()).hexdigest()


def _writable(buffer: memoryview, num_bytes: int) -> memoryview:
    if buffer.readonly or not buffer.c_contiguous or buffer.nbytes != num_bytes:
        raise ValueError(f"the buffer must be writable, contiguous and of {num_bytes} bytes, not {buffer.nbytes}")
    return buffer.cast("B")
