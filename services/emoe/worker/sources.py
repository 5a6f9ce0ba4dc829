"""Where a worker's expert bytes come from (the `ExpertSource` seam).

A source writes one expert's bytes into memory it is given, on whichever thread calls; it raises CheckpointError for
bytes that can never be right and NotReadyError for a neighbour that is away.
"""

from __future__ import annotations

import threading
from typing import Protocol

from emoe.core.errors import CheckpointError
from emoe.core.experts import ExpertId
from emoe.store.store import ExpertStore, xxh3_64


class ExpertSource(Protocol):
    def read_into(self, expert: ExpertId, buffer: memoryview) -> None:
        """Fills `buffer`, which has exactly one expert's size."""
        ...

    def close(self) -> None: ...


class LocalSource:
    """Positioned reads of the checkpoint's own files, for a worker that sees them."""

    def __init__(self, store: ExpertStore) -> None:
        self._store = store
        self._checksums: dict[ExpertId, int] = {}
        self._lock = threading.Lock()

    def read_into(self, expert: ExpertId, buffer: memoryview) -> None:
        self._store.read_into(expert, buffer)
        checksum = xxh3_64(buffer)
        with self._lock:
            first = self._checksums.setdefault(expert, checksum)
        if first != checksum:
            raise CheckpointError(
                f"expert {expert.index} of layer {expert.layer} in {self._store.folder} reads differently than before: "
                "the file was changed or the disk fails; restore the checkpoint and restart"
            )

    def close(self) -> None:
        self._store.close()
