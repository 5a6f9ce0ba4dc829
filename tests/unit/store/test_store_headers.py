from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import store_samples
from hypothesis import given
from hypothesis import strategies as st

from emoe.core.errors import CheckpointError
from emoe.store.headers import read_header
from emoe.store.store import ExpertStore
from emoe.store.tensors import TensorEntry


def parse(raw: bytes) -> dict[str, TensorEntry]:
    return read_header(
        Path("weights.safetensors"), num_bytes=len(raw), read_at=lambda count, offset: raw[offset : offset + count]
    )


def encode(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin: int, end: int, *, dtype: str = "U8", shape: list[int] | None = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def test_offsets_count_from_the_start_of_the_file() -> None:
    raw = encode({"a": entry(0, 3), "b": entry(3, 7, dtype="F32", shape=[1, 1])}, b"abcdefg")
    entries = parse(raw)
    found = {key: raw[item.offset : item.offset + item.num_bytes] for key, item in entries.items()}
    assert found == {"a": b"abc", "b": b"defg"}
    assert entries["b"].shape == (1, 1)


@pytest.mark.parametrize(
    ("header", "blamed"),
    [
        pytest.param({"a": entry(0, 3), "b": entry(2, 5)}, "b.*overlaps", id="overlap"),
        pytest.param({"a": entry(0, 3), "b": entry(4, 5)}, "b.*hole", id="hole"),
        pytest.param({"a": entry(0, 3), "b": entry(3, 4)}, "1 bytes follow", id="bytes after the end"),
        pytest.param({"a": entry(0, 3), "b": entry(3, 9)}, "truncated.*b ends", id="end outside the file"),
        pytest.param({"a": entry(0, 5, dtype="F32", shape=[1])}, "a.*do not make", id="size against shape"),
        pytest.param({"a": entry(0, 5, dtype="Q9")}, "a.*'Q9'", id="unknown dtype"),
        pytest.param({"a": entry(0, 5, shape=[-5])}, "a.*sizes", id="negative size"),
        pytest.param({"a": entry(5, 0, shape=[])}, "a.*do not make", id="end before begin"),
        pytest.param({"a": {"dtype": "U8", "shape": [5]}}, "a.*positions", id="no offsets"),
        pytest.param({"a": 7}, "a.*not an object", id="entry is a number"),
    ],
)
def test_a_header_that_lies_is_an_error_with_file_and_key(header: object, blamed: str) -> None:
    with pytest.raises(CheckpointError, match=rf"weights\.safetensors: .*{blamed}"):
        parse(encode(header, b"abcde"))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        pytest.param(b"", "truncated, only 0 bytes", id="empty"),
        pytest.param(b"PK\x03\x04" + bytes(40), "not a safetensors file", id="zip"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull", id="LFS pointer"),
        pytest.param(struct.pack("<Q", 500) + b'{"a":', "truncated inside the header", id="cut in the header"),
        pytest.param(struct.pack("<Q", 1 << 62) + b"{}", "not a safetensors file", id="absurd length"),
        pytest.param(struct.pack("<Q", 4) + b"{\xff\xff}", "header is corrupt", id="not text"),
        pytest.param(struct.pack("<Q", 15) + b'{"a":1, "a": 2}', "'a' stands there twice", id="repeated key"),
        pytest.param(struct.pack("<Q", 60_005) + b'{"a":' + b"[" * 60_000, "nested too deeply", id="deep nesting"),
    ],
)
def test_a_file_that_is_no_safetensors_is_an_error_that_says_so(raw: bytes, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        parse(raw)


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda text: struct.pack("<Q", len(text)) + b"{" + text))
def test_no_bytes_whatever_cause_another_kind_of_error(raw: bytes) -> None:
    try:
        parse(raw)
    except CheckpointError as error:
        assert "weights.safetensors" in str(error)  # noqa: PT017 - most inputs raise, some may be valid


def test_a_truncated_file_names_file_and_the_key_it_ends_in(folder: Path) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated: model\.layers\.1\.\S+ ends"):
        ExpertStore.open(folder)


def test_a_missing_shard_names_the_file_and_a_key_that_it_holds(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00003\.safetensors: missing.*model\.\S+ among them"):
        ExpertStore.open(sharded)


def test_a_key_that_the_index_places_in_a_file_without_it_is_named(sharded: Path) -> None:
    store_samples.misplace(sharded)
    with pytest.raises(CheckpointError, match=r"model-00001-of-00003\.safetensors: model\.norm\.weight is missing"):
        ExpertStore.open(sharded)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "..", ""])
def test_an_index_never_leads_out_of_its_folder(sharded: Path, name: str) -> None:
    path = sharded / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(CheckpointError, match=r"index\.json: not valid .*no file of this folder"):
        ExpertStore.open(sharded)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(lambda folder: (folder / "config.json").unlink(), r"config\.json: missing", id="no config"),
        pytest.param(lambda folder: (folder / "config.json").write_text("{"), r"config\.json: not valid", id="broken"),
        pytest.param(lambda folder: (folder / "config.json").write_text("[]"), r"config\.json: not valid", id="a list"),
        pytest.param(
            lambda folder: (folder / "model.safetensors").unlink(), r"no model\.safetensors and no", id="no weights"
        ),
        pytest.param(
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "reads safetensors only",
            id="another format",
        ),
    ],
)
def test_a_folder_that_is_not_whole_says_what_is_missing(folder: Path, change: object, reason: str) -> None:
    assert callable(change)
    change(folder)
    with pytest.raises(CheckpointError, match=reason):
        ExpertStore.open(folder)


def test_a_folder_that_does_not_exist_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere/config\.json: missing"):
        ExpertStore.open(tmp_path / "nowhere")


def test_a_foreign_file_under_a_shards_name_is_named(sharded: Path) -> None:
    (sharded / "model-00003-of-00003.safetensors").write_bytes(os.urandom(8) + b"<html>not found</html>")
    with pytest.raises(CheckpointError, match=r"00003-of-00003\.safetensors: not a safetensors file"):
        ExpertStore.open(sharded)


def test_a_single_file_wins_over_shards_as_in_transformers(folder: Path, sharded: Path) -> None:
    for path in sharded.glob("model*"):
        path.rename(folder / path.name)
    with ExpertStore.open(folder) as store:
        assert {entry.file for entry in store.base_tensors.values()} == {"model.safetensors"}
        assert store.grid.num_layers == store_samples.LAYERS
