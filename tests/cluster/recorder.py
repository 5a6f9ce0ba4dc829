"""What a client's own watch saw, and when by its own monotonic clock."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import threading
import time
from collections.abc import Iterator

import kube as k


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    at: float
    """time.monotonic()"""
    kind: str
    """ADDED, MODIFIED or DELETED."""
    body: k.Body


class Recording:
    """Grows while the watch runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: list[Seen] = []

    def add(self, event: k.Body) -> None:
        with self._lock:
            self._seen.append(Seen(at=time.monotonic(), kind=event["type"], body=event["object"]))

    @property
    def seen(self) -> list[Seen]:
        with self._lock:
            return list(self._seen)

    def first_seen(self, name: str, *, kind: str = "ADDED") -> float | None:
        return next((one.at for one in self.seen if one.kind == kind and k.name_of(one.body) == name), None)

    def statuses(self, resource: str) -> list[k.Body]:
        """The resource's distinct statuses in their order, empty ones left out."""
        distinct: list[k.Body] = []
        for one in self.seen:
            status = one.body.get("status")
            if k.name_of(one.body) == resource and status and (not distinct or distinct[-1] != status):
                distinct.append(status)
        return distinct


@contextlib.contextmanager
def recording(kube: k.Kube, kinds: str, selector: str = "") -> Iterator[Recording]:
    """Watches until the block ends; what stood before comes first, as ADDED."""
    watch = subprocess.Popen(
        [
            *("kubectl", f"--namespace={kube.namespace}", "get", kinds, f"--selector={selector}"),
            *("--watch", "--output-watch-events", "--output=json"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    record = Recording()
    reader = threading.Thread(target=_read, args=(watch, record), daemon=True)
    reader.start()
    try:
        yield record
    finally:
        watch.terminate()
        watch.wait(10)
        reader.join(10)
        if watch.stdout is not None:
            watch.stdout.close()


def _read(watch: subprocess.Popen[str], record: Recording) -> None:
    """One event a line."""
    assert watch.stdout is not None
    for line in watch.stdout:
        record.add(json.loads(line))
