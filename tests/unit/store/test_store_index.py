from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import store_samples
from hypothesis import given
from hypothesis import strategies as st

from emoe.core.errors import CheckpointError
from emoe.core.experts import ExpertId
from emoe.store.index import TensorIndex, from_body, to_body
from emoe.store.sidecar import Sidecar
from emoe.store.store import ExpertStore
from emoe.store.tensors import FileStat, TensorEntry

FIRST = ExpertId(0, 0)


def spoil_header_unnoticed(folder: Path) -> None:
    """Only a store that reads the header again can fail now: size and time are as before."""
    store_samples.flip_byte(folder / "model.safetensors", 12, keep_time=True)


def open_and_close(folder: Path, cache_dir: Path | None = None) -> None:
    ExpertStore.open(folder, cache_dir=cache_dir).close()


def test_the_index_is_kept_beside_the_checkpoint_and_used_again(folder: Path) -> None:
    open_and_close(folder)
    assert (folder / ".emoe-index.json").is_file()
    spoil_header_unnoticed(folder)
    with ExpertStore.open(folder) as store:
        assert store.read(FIRST) == store_samples.expert_bytes(0, 0)


def test_a_file_that_changed_is_indexed_again(folder: Path) -> None:
    open_and_close(folder)
    store_samples.flip_byte(folder / "model.safetensors", 12)
    with pytest.raises(CheckpointError):
        ExpertStore.open(folder)


def test_a_changed_list_of_shards_is_read_again(sharded: Path) -> None:
    open_and_close(sharded)
    store_samples.misplace(sharded)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is missing"):
        ExpertStore.open(sharded)


def test_where_the_folder_cannot_be_written_the_cache_folder_is_used(folder: Path, tmp_path: Path) -> None:
    store_samples.deny_writing(folder)
    open_and_close(folder, tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("index-*.json"))) == 1
    spoil_header_unnoticed(folder)
    open_and_close(folder, tmp_path / "cache")


def test_without_a_cache_folder_given_the_users_own_is_used(folder: Path, cache_home: Path) -> None:
    open_and_close(store_samples.deny_writing(folder))
    assert list((cache_home / "emoe").glob("index-*.json"))


def test_where_nothing_can_be_written_the_store_opens_all_the_same(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store_samples.deny_writing(folder)
    with ExpertStore.open(folder, cache_dir=tmp_path / "file") as store:
        assert store.read(FIRST) == store_samples.expert_bytes(0, 0)
    assert not list(folder.glob("*.tmp"))


def test_writing_leaves_no_draft_behind(folder: Path) -> None:
    open_and_close(folder)
    assert sorted(path.name for path in folder.iterdir()) == [".emoe-index.json", "config.json", "model.safetensors"]


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda raw: b"", id="empty"),
        pytest.param(lambda raw: raw[: len(raw) // 2], id="cut"),
        pytest.param(lambda raw: b"\x00" * len(raw), id="zeros"),
        pytest.param(lambda raw: raw.replace(b'"version":1', b'"version":0'), id="altered"),
        pytest.param(lambda raw: b'{"xxh3":"0000000000000000","body":{}}\n', id="foreign"),
    ],
)
def test_a_corrupt_cache_is_made_again(folder: Path, spoil: object) -> None:
    open_and_close(folder)
    path = folder / ".emoe-index.json"
    whole = path.read_bytes()
    assert callable(spoil)
    path.write_bytes(spoil(whole))
    with ExpertStore.open(folder) as store:
        assert store.read(FIRST) == store_samples.expert_bytes(0, 0)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"version": 2}, id="later version"),
        pytest.param({"version": 1}, id="nothing in it"),
        pytest.param({"version": 1, "files": [["a", 1, 2]], "tensors": [["k", 5, 0, 0, [], "F32"]]}, id="unknown file"),
        pytest.param({"version": 1, "files": [["a", 1]], "tensors": []}, id="short entry"),
    ],
)
def test_a_body_of_another_shape_is_no_index(body: dict[str, object]) -> None:
    assert from_body(body) is None


def test_two_models_share_a_cache_folder(tmp_path: Path) -> None:
    base = store_samples.write(tmp_path / "base", store_samples.config(), store_samples.tensors())
    changed = {key: tensor * 2 for key, tensor in store_samples.tensors().items()}
    tuned = store_samples.write(tmp_path / "tuned", store_samples.config(), changed)
    for folder in (base, tuned):
        store_samples.set_time(folder / "model.safetensors", 1_000_000_000)
        store_samples.deny_writing(folder)
    for _ in range(2):
        with (
            ExpertStore.open(base, cache_dir=tmp_path / "cache") as one,
            ExpertStore.open(tuned, cache_dir=tmp_path / "cache") as other,
        ):
            assert one.read(FIRST) == store_samples.expert_bytes(0, 0)
            assert other.read(FIRST) != one.read(FIRST)
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_the_digest_is_the_models_not_the_folders(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(dict(reversed(config.items())), indent=4))
    with ExpertStore.open(folder) as one, ExpertStore.open(copy) as other:
        assert one.digest == other.digest


def test_the_digest_changes_with_config_and_headers(folder: Path, sharded: Path, tmp_path: Path) -> None:
    other_config = store_samples.write(tmp_path / "other", store_samples.config(rope_theta=7), store_samples.tensors())
    digests = set()
    for path in (folder, sharded, other_config):
        with ExpertStore.open(path) as store:
            digests.add(store.digest)
    assert len(digests) == 3


names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=8)
sizes = st.integers(0, 1 << 62)


@st.composite
def indexes(draw: st.DrawFn) -> TensorIndex:
    files = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    entries = st.builds(
        TensorEntry,
        file=st.sampled_from(files),
        offset=sizes,
        num_bytes=sizes,
        shape=st.lists(sizes, max_size=4).map(tuple),
        dtype=st.sampled_from(["F32", "BF16"]),
    )
    return TensorIndex(
        stats=tuple(FileStat(name, draw(sizes), draw(st.integers(-(1 << 40), 1 << 62))) for name in files),
        tensors=draw(st.dictionaries(names, entries, max_size=6)),
        headers_sha256=draw(names),
    )


@given(index=indexes())
def test_an_index_survives_its_cache(index: TensorIndex, tmp_path_factory: pytest.TempPathFactory) -> None:
    sidecar = Sidecar(tmp_path_factory.mktemp("round"), ".emoe-index.json", cache_dir=None, key="unused")
    assert sidecar.write(to_body(index)) is not None
    assert [from_body(body) for body in sidecar.bodies()] == [index]
