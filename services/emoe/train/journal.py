"""What a long run has found so far, in one file that only grows: interrupted, the run goes on from there.

One record after another, each with its checksum: what a kill or a power cut tore off at the end is recognised, cut and
done again. The first says what the run is of; records of any other run are of no use and are dropped. Does not know
what the records mean.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy.typing as npt

from emoe.core.errors import CheckpointError, InvalidRequestError
from emoe.store.learned import read_arrays, read_metadata, write_arrays
from emoe.store.store import xxh3_64
from emoe.store.strict_json import parse_object

Say = Callable[[str], None]
Record = tuple[dict[str, str], dict[str, npt.NDArray[Any]]]

_FRAME = struct.Struct("<QQ")
"""Bytes of the record, their checksum."""


class Journal:
    """Open for appending, and locked: two runs that write one file would tear it."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, identity: Mapping[str, str], *, say: Say) -> Iterator[Self]:
        """`identity`: what a run is of, by headings that the user is told when they differ.

        InvalidRequestError when the file cannot be written, or another run is writing it.
        """
        try:
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        except OSError as error:
            raise InvalidRequestError(f"{path}: cannot be written ({error.strerror}); give another --out") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InvalidRequestError(f"{path}: another run is writing it; let it end, or stop it") from error
            journal = cls(path, file)
            journal._begin(dict(identity), say)
            yield journal

    def records(self) -> Iterator[Record]:
        """From the first on. Nothing may be appended until they have all been read."""
        self._file.seek(0)
        frames = _frames(self._file)
        next(frames)
        for raw in frames:
            yield read_metadata(raw), read_arrays(raw, name=str(self.path))

    def append(self, metadata: Mapping[str, str], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """InvalidRequestError when the disk takes no more."""
        try:
            _write_frame(self._file, write_arrays(arrays, metadata))
        except OSError as error:
            raise InvalidRequestError(
                f"{self.path}: cannot be written ({error.strerror}); make room, and the same command goes on"
            ) from error

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def _begin(self, identity: dict[str, str], say: Say) -> None:
        self._file.seek(0)
        frames = _frames(self._file)
        begun = _parse_identity(next(frames, None))
        if begun == identity:
            end = self._file.tell()
            for _ in frames:
                end = self._file.tell()
            self._file.truncate(end)
            return
        if begun is not None:
            differing = [key for key in identity if identity[key] != begun.get(key)] or ["an other version"]
            say(f"{self.path.name} was begun with other {' and '.join(differing)}: all begins anew")
        elif self._file.seek(0, os.SEEK_END):
            say(f"{self.path.name} cannot be read: all begins anew")
        self._file.seek(0)
        self._file.truncate()
        _write_frame(self._file, json.dumps(identity).encode())


def _frames(file: BinaryIO) -> Iterator[bytes]:
    """The whole ones; the file stands behind the last of them when it is asked for the next."""
    while len(head := file.read(_FRAME.size)) == _FRAME.size:
        num_bytes, checksum = _FRAME.unpack(head)
        raw = _read(file, num_bytes)
        if raw is None or xxh3_64(raw) != checksum:
            return
        yield raw


def _read(file: BinaryIO, num_bytes: int) -> bytes | None:
    """None where there are fewer left: a torn length may be any number."""
    left = os.fstat(file.fileno()).st_size - file.tell()
    return file.read(num_bytes) if num_bytes <= left else None


def _write_frame(file: BinaryIO, raw: bytes) -> None:
    file.seek(0, os.SEEK_END)
    file.write(_FRAME.pack(len(raw), xxh3_64(raw)) + raw)
    file.flush()


def _parse_identity(raw: bytes | None) -> dict[str, str] | None:
    try:
        return None if raw is None else {key: str(value) for key, value in parse_object(raw).items()}
    except (ValueError, CheckpointError):
        return None
