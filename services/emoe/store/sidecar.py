"""A small JSON file of ours about a checkpoint: beside it, or in a cache folder where that cannot be written.

What stands in it can always be made again, so nothing here fails: an unreadable, torn or altered file is as good as
none, and where nothing can be written, nothing is kept. Does not know what it keeps.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import xxhash

from emoe.store.strict_json import parse_object

_ENVELOPE = re.compile(rb'\{"xxh3":"([0-9a-f]{16})","body":(.*)\}\n', re.DOTALL)

_log = logging.getLogger(__name__)


class Sidecar:
    """One such file: `name` beside the checkpoint, else in `cache_dir` under a `key` that no other checkpoint has."""

    def __init__(self, folder: Path, name: str, *, cache_dir: Path | None, key: str) -> None:
        self._warned = False
        self._places = [folder / name]
        if cache_dir is not None:
            self._places.append(cache_dir / f"{name.removeprefix('.emoe-').removesuffix('.json')}-{key}.json")

    @property
    def existing(self) -> list[Path]:
        return [path for path in self._places if path.is_file()]

    def bodies(self) -> Iterator[dict[str, object]]:
        """What is kept, the one beside the checkpoint first; whoever reads it checks that it still fits."""
        for path in self._places:
            with contextlib.suppress(OSError, ValueError):
                yield _unwrap(path.read_bytes())

    def write(self, body: dict[str, object]) -> Path | None:
        """Replaces the file in one step, in the first place that takes it; None when no place does."""
        raw = _wrap(body)
        for path in self._places:
            try:
                _replace(path, raw)
            except OSError as error:
                _log.debug("%s cannot be written: %s", path, error)
            else:
                return path
        if not self._warned:
            _log.warning("no place takes %s: it will be made again at the next start", self._places[0])
        self._warned = True
        return None


def default_cache_dir() -> Path | None:
    """$XDG_CACHE_HOME/emoe, else ~/.cache/emoe; None for a user without a home."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    if Path(named).is_absolute():
        return Path(named) / "emoe"
    try:
        return Path.home() / ".cache" / "emoe"
    except RuntimeError:
        return None


def cache_key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _wrap(body: dict[str, object]) -> bytes:
    text = json.dumps(body, separators=(",", ":")).encode()
    return b'{"xxh3":"%s","body":%s}\n' % (xxhash.xxh3_64_hexdigest(text).encode(), text)


def _unwrap(raw: bytes) -> dict[str, object]:
    match = _ENVELOPE.fullmatch(raw)
    if match is None or xxhash.xxh3_64_hexdigest(match[2]).encode() != match[1]:
        raise ValueError("torn or altered")
    return parse_object(match[2])


def _replace(path: Path, raw: bytes) -> None:
    """Not synced to the disk: a file that a power cut tore is recognised and made again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        draft.write_bytes(raw)
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
