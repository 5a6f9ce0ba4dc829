"""The calibration FILE of a model: what it is for and what it takes, from its header alone.

A safetensors file beside the checkpoint, made by `emoe profile --calibrate`, used by workers that reroute. Whoever
counts memory asks here; its tensors are read where they are used. Parsing is strict: a file that was made from other
weights, or is not whole, is an error that says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from emoe.core.errors import CheckpointError
from emoe.store.headers import LENGTH_BYTES, header_end, read_header
from emoe.store.profile import CALIBRATION_FILE
from emoe.store.store import ExpertStore
from emoe.store.strict_json import parse_object
from emoe.store.tensors import TensorEntry

FORMAT = "emoe calibration 1"
STANDIN, GATE, NORM, LINEAR = "standin", "gate", "norm", "linear"
PARTS = (STANDIN, GATE, NORM, LINEAR)
_REQUIRED = ("digest", "fingerprint", "parts", "standin_width", "gate_rank", "linear_rank", "num_tokens", "loss")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationShape:
    """Which parts there are. `standin_width`: of the stand-in experts' intermediate; `gate_rank`: of the routers'
    correction, 0 for a whole matrix; `linear_rank`: of the dense linears' corrections."""

    parts: tuple[str, ...]
    standin_width: int = 0
    gate_rank: int = 0
    linear_rank: int = 0

    def __post_init__(self) -> None:
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise ValueError(f"a calibration has parts of {', '.join(PARTS)}, not {', '.join(unknown) or 'none'}")
        if STANDIN in self.parts and self.standin_width < 1:
            raise ValueError(f"a stand-in expert of width {self.standin_width} is none; leave the part out")
        if LINEAR in self.parts and self.linear_rank < 1:
            raise ValueError(f"a correction of rank {self.linear_rank} is none; leave the part out")
        if self.gate_rank < 0:
            raise ValueError(f"a rank is not negative: {self.gate_rank}")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationInfo:
    """`num_bytes`: of its tensors, which is what a worker keeps of it; `loss`: the last of its training, in nats."""

    path: Path
    shape: CalibrationShape
    tensors: Mapping[str, TensorEntry]
    num_tokens: int
    loss: float

    @property
    def num_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self.tensors.values())


def read_calibration_info(path: Path, *, digest: str, fingerprint: str) -> CalibrationInfo | None:
    """None where there is no such file. CheckpointError when it is damaged or another model's.

    `digest` and `fingerprint` are `ExpertStore`'s.
    """
    try:
        with path.open("rb") as file:
            tensors, metadata = _read(path, file)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); make it readable, or remove it") from error
    try:
        info, made_from = _parse(path, tensors, metadata)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: it is no calibration ({error}); make it anew with `emoe profile --calibrate`, or remove it"
        ) from error
    if made_from != (digest, fingerprint):
        raise CheckpointError(
            f"{path} was made from other weights (digest {made_from[0][:12]} and fingerprint {made_from[1][:12]}; "
            f"these have {digest[:12]} and {fingerprint[:12]}): make it anew with `emoe profile --calibrate`, or "
            "remove it"
        )
    return info


def calibration_beside(store: ExpertStore) -> CalibrationInfo | None:
    """That of an open model's own folder, as `read_calibration_info`."""
    path = store.folder / CALIBRATION_FILE
    if not path.exists():
        return None
    return read_calibration_info(path, digest=store.digest, fingerprint=store.fingerprint())


def render_metadata(
    shape: CalibrationShape, *, digest: str, fingerprint: str, num_tokens: int, loss: float, made: str
) -> dict[str, str]:
    """As the file's header has it; `made` is for people."""
    return {
        "format": FORMAT,
        "digest": digest,
        "fingerprint": fingerprint,
        "parts": ",".join(shape.parts),
        "standin_width": str(shape.standin_width),
        "gate_rank": str(shape.gate_rank),
        "linear_rank": str(shape.linear_rank),
        "num_tokens": str(num_tokens),
        "loss": f"{loss:.6f}",
        "made": made,
    }


def _read(path: Path, file: BinaryIO) -> tuple[dict[str, TensorEntry], Mapping[str, object]]:
    def read_at(num_bytes: int, offset: int) -> bytes:
        file.seek(offset)
        return file.read(num_bytes)

    tensors = read_header(path, num_bytes=path.stat().st_size, read_at=read_at)
    header = parse_object(read_at(header_end(read_at(LENGTH_BYTES, 0)) - LENGTH_BYTES, LENGTH_BYTES))
    metadata = header.get("__metadata__")
    return tensors, metadata if isinstance(metadata, dict) else {}


def _parse(
    path: Path, tensors: Mapping[str, TensorEntry], metadata: Mapping[str, object]
) -> tuple[CalibrationInfo, tuple[str, str]]:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"its format is {metadata.get('format')!r}, this version reads {FORMAT!r}")
    fields = {name: str(metadata[name]) for name in _REQUIRED}
    info = CalibrationInfo(
        path=path,
        shape=CalibrationShape(
            parts=tuple(fields["parts"].split(",")),
            standin_width=int(fields["standin_width"]),
            gate_rank=int(fields["gate_rank"]),
            linear_rank=int(fields["linear_rank"]),
        ),
        tensors=tensors,
        num_tokens=int(fields["num_tokens"]),
        loss=float(fields["loss"]),
    )
    return info, (fields["digest"], fields["fingerprint"])
