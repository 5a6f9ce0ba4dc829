"""A calibration's header: which weights it is for, and what it takes."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from emoe.core.errors import CheckpointError
from emoe.store.calibration import CalibrationShape, read_calibration_info, render_metadata

SHAPE = CalibrationShape(parts=("standin", "gate"), standin_width=16, gate_rank=2)
METADATA = render_metadata(SHAPE, digest="d" * 64, fingerprint="f" * 64, num_tokens=700, loss=0.25, made="here")


def write(path: Path, metadata: dict[str, str] | None = None, *, data: bytes = bytes(24)) -> Path:
    header = {
        "__metadata__": METADATA if metadata is None else metadata,
        "layers.0.gate_bias": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "layers.0.input_gain": {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]},
    }
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def test_it_says_what_it_has_and_takes(tmp_path: Path) -> None:
    info = read_calibration_info(write(tmp_path / "c"), digest="d" * 64, fingerprint="f" * 64)
    assert info is not None
    assert (info.shape, info.num_bytes, info.num_tokens, info.loss) == (SHAPE, 24, 700, 0.25)


def test_there_need_be_none(tmp_path: Path) -> None:
    assert read_calibration_info(tmp_path / "none", digest="", fingerprint="") is None


@pytest.mark.parametrize(
    ("digest", "fingerprint"), [("e" * 64, "f" * 64), ("d" * 64, "e" * 64)], ids=["other shapes", "other weights"]
)
def test_one_of_another_model_is_refused(tmp_path: Path, digest: str, fingerprint: str) -> None:
    with pytest.raises(CheckpointError, match=r"other weights .*emoe profile --calibrate"):
        read_calibration_info(write(tmp_path / "c"), digest=digest, fingerprint=fingerprint)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": "emoe calibration 9"}, "emoe calibration 9"),
        ({"parts": "standin,wings"}, "wings"),
        ({"standin_width": "0"}, "width 0"),
        ({"standin_width": "wide"}, "wide"),
        ({"loss": ""}, "could not convert"),
    ],
)
def test_a_header_that_does_not_fit_is_refused_with_the_reason(
    tmp_path: Path, changed: dict[str, str], message: str
) -> None:
    with pytest.raises(CheckpointError, match=f"no calibration .*{message}"):
        read_calibration_info(write(tmp_path / "c", METADATA | changed), digest="d" * 64, fingerprint="f" * 64)


@pytest.mark.parametrize("name", sorted(METADATA.keys() - {"made"}))
def test_every_field_must_be_there(tmp_path: Path, name: str) -> None:
    metadata = {key: value for key, value in METADATA.items() if key != name}
    with pytest.raises(CheckpointError, match="no calibration"):
        read_calibration_info(write(tmp_path / "c", metadata), digest="d" * 64, fingerprint="f" * 64)


def test_a_torn_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="truncated"):
        read_calibration_info(write(tmp_path / "c", data=bytes(8)), digest="d" * 64, fingerprint="f" * 64)
