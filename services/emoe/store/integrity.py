"""Whether an expert's bytes are still those that were read the first time.

The SHA-256 of each expert is recorded at its first read. While its files keep size and time, that is the end of it;
once one of them changed, the expert is hashed once more, at its first read in each process that finds it so, and must
agree.
Stands between a read and its caller. Does not read files of weights itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from emoe.core.errors import CheckpointError
from emoe.core.experts import ExpertId
from emoe.store.sidecar import Sidecar, cache_key
from emoe.store.tensors import Extent, FileStat

VERSION = 1
LEDGER_NAME = ".emoe-sha256.json"
FLUSH_EVERY = 256
"""Experts newly recorded before they are written down; a process that is killed records the rest again."""


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """The hash of an expert, and how the files that hold it looked when it was last found right."""

    sha256: str
    stats: tuple[FileStat, ...]


Records = dict[ExpertId, Record]


class IntegrityLedger:
    """Any number of threads may `check` at once; each expert is hashed once a process, or twice when they race."""

    def __init__(
        self,
        folder: Path,
        *,
        extents: Mapping[ExpertId, tuple[Extent, ...]],
        stats: Mapping[str, FileStat],
        sidecar: Sidecar,
        digest: str,
    ) -> None:
        self._folder = folder
        self._extents = extents
        self._stats = stats
        self._sidecar = sidecar
        self._digest = digest
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._records = self._kept()
        self._settled = {expert for expert, record in self._records.items() if self._is_current(expert, record)}
        self._num_unwritten = 0

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        extents: Mapping[ExpertId, tuple[Extent, ...]],
        stats: Mapping[str, FileStat],
        digest: str,
        cache_dir: Path | None,
    ) -> Self:
        # By path as well: a model and one fine-tuned from it have the same digest.
        key = cache_key(str(folder.resolve()), digest)
        sidecar = Sidecar(folder, LEDGER_NAME, cache_dir=cache_dir, key=key)
        return cls(folder, extents=extents, stats=stats, sidecar=sidecar, digest=digest)

    def check(self, expert: ExpertId, data: memoryview) -> None:
        """CheckpointError when `data` is not what this expert was; call it after every read."""
        with self._lock:
            if expert in self._settled:
                return
        found = hashlib.sha256(data).hexdigest()
        with self._lock:
            record = self._records.get(expert)
            if record is not None and record.sha256 != found:
                raise self._mismatch(expert)
            if expert in self._settled:
                return
            self._records[expert] = Record(found, self._stats_of(expert))
            self._settled.add(expert)
            self._num_unwritten += 1
            is_due = self._num_unwritten >= FLUSH_EVERY or len(self._settled) == len(self._extents)
        if is_due:
            self.flush()

    def flush(self) -> None:
        """Writes what is new, along with what other processes wrote meanwhile."""
        with self._flushing:
            with self._lock:
                if not self._num_unwritten:
                    return
                records, self._num_unwritten = dict(self._records), 0
            self._sidecar.write(to_body({**self._kept(), **records}, self._digest))

    def _kept(self) -> Records:
        """From every place, one an expert: the first found, unless another describes the files as they are."""
        kept: Records = {}
        for body in self._sidecar.bodies():
            for expert, record in from_body(body, self._digest):
                if expert in self._extents and (expert not in kept or self._is_current(expert, record)):
                    kept[expert] = record
        return kept

    def _stats_of(self, expert: ExpertId) -> tuple[FileStat, ...]:
        return tuple(self._stats[file] for file in sorted({extent.file for extent in self._extents[expert]}))

    def _is_current(self, expert: ExpertId, record: Record) -> bool:
        return record.stats == self._stats_of(expert)

    def _mismatch(self, expert: ExpertId) -> CheckpointError:
        extents = self._extents[expert]
        files = ", ".join(str(self._folder / file) for file in sorted({extent.file for extent in extents}))
        keys = ", ".join(sorted({extent.key for extent in extents}))
        places = " and ".join(map(str, self._sidecar.existing)) or "the recorded hashes"
        return CheckpointError(
            f"{files}: the bytes of layer {expert.layer}, expert {expert.index} ({keys}) are not those first read; "
            f"fetch the file again, or, if it was replaced on purpose, delete {places}"
        )


def to_body(records: Mapping[ExpertId, Record], digest: str) -> dict[str, object]:
    """Many experts share a file's state, so states are listed once and referred to by number."""
    numbers: dict[FileStat, int] = {}
    experts = [
        [*expert, record.sha256, [numbers.setdefault(stat, len(numbers)) for stat in record.stats]]
        for expert, record in sorted(records.items())
    ]
    return {"version": VERSION, "digest": digest, "files": list(numbers), "experts": experts}


def from_body(body: Mapping[str, object], digest: str) -> Iterator[tuple[ExpertId, Record]]:
    """Nothing for another version, another model, or what `to_body` never wrote."""
    if body.get("version") != VERSION or body.get("digest") != digest:
        return
    try:
        stats = [FileStat(*stat) for stat in body["files"]]  # type: ignore[attr-defined]
        for layer, index, sha256, numbers in body["experts"]:  # type: ignore[attr-defined]
            yield ExpertId(layer, index), Record(sha256, tuple(stats[number] for number in numbers))
    except (KeyError, TypeError, ValueError, IndexError):
        return
