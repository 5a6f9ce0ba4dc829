"""Which files a checkpoint is run from, and which of their bytes are no expert's."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_samples import config, data_start, tensors, write

from emoe.core.experts import from_grid
from emoe.store.published import list_files
from emoe.store.store import ExpertStore


@pytest.fixture(params=[1, 3], ids=["one-file", "shards"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write(tmp_path, config(), tensors(), num_shards=request.param)
    (tmp_path / "tokenizer.json").write_text("{}")
    for name in ("README.md", "pytorch_model.bin", ".emoe-index.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def test_weights_configuration_and_tokenizer_are_listed_and_nothing_else(folder: Path) -> None:
    with ExpertStore.open(folder) as store:
        files = {file.name: file for file in list_files(store)}
    weights = {path.name for path in folder.glob("model*")}
    assert set(files) == {"config.json", "tokenizer.json"} | weights
    assert all(file.num_bytes == (folder / name).stat().st_size for name, file in files.items())
    assert [(run.offset, run.num_bytes) for run in files["tokenizer.json"].base] == [(0, 2)]


def test_base_ranges_and_experts_are_all_of_a_weight_file_and_never_overlap(folder: Path) -> None:
    with ExpertStore.open(folder) as store:
        files = [file for file in list_files(store) if file.name in store.file_bytes]
        extents = [extent for expert in from_grid(store.grid.all_experts()) for extent in store._extents_of(expert)]
    for file in files:
        assert file.base[0].offset == 0
        assert file.base[0].num_bytes >= data_start(folder / file.name)
        runs = [(run.offset, run.num_bytes) for run in file.base]
        runs += [(extent.offset, extent.num_bytes) for extent in extents if extent.file == file.name]
        position = 0
        for offset, num_bytes in sorted(runs):
            assert offset == position
            position += num_bytes
        assert position == file.num_bytes


def test_layers_that_are_never_run_are_not_sent(tmp_path: Path) -> None:
    """DeepSeek's layers for multi-token prediction lie in the same files."""
    found = tensors()
    extra = {name.replace("layers.1", "layers.2"): tensor for name, tensor in found.items() if "layers.1" in name}
    write(tmp_path, config(), found | extra)
    with ExpertStore.open(tmp_path) as store:
        weights = next(file for file in list_files(store) if file.name == "model.safetensors")
        base_bytes = sum(entry.num_bytes for entry in store.base_tensors.values())
    assert sum(run.num_bytes for run in weights.base) == data_start(tmp_path / "model.safetensors") + base_bytes
