"""Estimates on disk: answers' lengths and workers' costs outlive a restart of the scheduler.

One file, replaced whole, read once at start. One that cannot be read, or is another version's, is moved aside, never
deleted, and learning begins anew. The file is JSON with the SHA-256 of its content.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from emoe.scheduler.costs import CostMemory
from emoe.scheduler.lengths import LengthEstimator
from emoe.store.strict_json import parse_object

FILE_NAME = "estimates.json"
FORMAT = "emoe scheduler estimates 1"

_log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def kept_estimates(
    lengths: LengthEstimator, costs: CostMemory, state_dir: Path | None
) -> AsyncIterator[EstimateKeeper | None]:
    """They begin where they were saved last, and leaving saves them. In between the caller runs `save_every`."""
    if state_dir is None:
        _log.info("no state_dir is set: estimates end with this process, and save_interval_seconds does nothing")
        yield None
        return
    keeper = EstimateKeeper(lengths, costs, state_dir)
    keeper.load()
    try:
        yield keeper
    finally:
        await keeper.save_if_new()


class EstimateKeeper:
    """Keeps `lengths` and `costs` in a folder. A disk that refuses is logged, and tried again."""

    def __init__(self, lengths: LengthEstimator, costs: CostMemory, state_dir: Path) -> None:
        self._lengths = lengths
        self._costs = costs
        self._path = state_dir / FILE_NAME
        self._writing = threading.Lock()
        self._num_saved = self._num_observed

    def load(self) -> None:
        """Makes the folder if it is missing. OSError when access is denied."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            content = _parse(self._path.read_bytes())
            self._restore(content)
        except FileNotFoundError:
            _log.info("no %s yet: lengths and costs are learnt from the beginning", self._path)
        except ValueError as error:
            aside = self._path.with_name(f"{FILE_NAME}.corrupt")
            self._path.replace(aside)
            _log.warning("cannot use %s (%s): moved to %s, learning begins anew", self._path, error, aside.name)

    async def save_every(self, interval_seconds: float) -> None:
        while True:
            await asyncio.sleep(interval_seconds)
            await self.save_if_new()

    async def save_if_new(self) -> None:
        num_observed = self._num_observed
        if num_observed == self._num_saved:
            return
        raw = _render({"lengths": self._lengths.to_json(), "costs": self._costs.to_json()})
        try:
            await asyncio.to_thread(self._write, raw)
        except OSError as error:
            _log.warning("cannot save estimates to %s: %s; trying again later", self._path, error)
            return
        self._num_saved = num_observed

    def _write(self, raw: bytes) -> None:
        """One at a time: a cancelled save may still be writing when the last one begins."""
        with self._writing:
            _replace(self._path, raw)

    def _restore(self, content: dict[str, Any]) -> None:
        """Both or neither."""
        lengths, costs = content.get("lengths"), content.get("costs")
        if not isinstance(lengths, dict) or not isinstance(costs, dict):
            raise ValueError("it has no lengths or no costs")  # noqa: TRY004 - one error for whatever is wrong with it
        CostMemory().restore(costs)
        self._lengths.restore(lengths)
        self._costs.restore(costs)

    @property
    def _num_observed(self) -> int:
        return self._lengths.num_observed + self._costs.num_observed


def _render(content: dict[str, Any]) -> bytes:
    return (
        json.dumps({"format": FORMAT, "sha256": _digest(content), "content": content}, allow_nan=False) + "\n"
    ).encode()


def _parse(raw: bytes) -> dict[str, Any]:
    stored = parse_object(raw)
    if stored.get("format") != FORMAT:
        raise ValueError(f"its format is {stored.get('format')!r}, this version reads {FORMAT!r}")
    content = stored.get("content")
    if not isinstance(content, dict) or _digest(content) != stored.get("sha256"):
        raise ValueError("its checksum does not fit its content")
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _replace(path: Path, raw: bytes) -> None:
    """The file is there whole, old or new, at every moment."""
    partial = path.with_name(f"{FILE_NAME}.partial")
    with partial.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
