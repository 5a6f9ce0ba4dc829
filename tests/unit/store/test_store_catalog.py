from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import store_samples
from store_samples import EXPERTS, HIDDEN, INTERMEDIATE, Tensors

from emoe.core.errors import CheckpointError, UnsupportedModelError
from emoe.core.experts import ExpertId
from emoe.store.store import ExpertStore

STEM = "model.layers.1.block_sparse_moe.experts"


def open_with(tmp_path: Path, found: Tensors, **changes: object) -> ExpertStore:
    return ExpertStore.open(store_samples.write(tmp_path / "changed", store_samples.config(**changes), found))


def packed_tensors() -> Tensors:
    """As transformers holds Mixtral in memory: all experts of a layer in one tensor."""
    found = store_samples.base_tensors()
    for layer in range(store_samples.LAYERS):
        experts = [list(store_samples.expert_tensors(layer, index).values()) for index in range(EXPERTS)]
        stem = f"model.layers.{layer}.mlp.experts"
        found[f"{stem}.gate_up_proj"] = np.stack([np.concatenate(parts[:2]) for parts in experts])
        found[f"{stem}.down_proj"] = np.stack([parts[2] for parts in experts])
    return found


def test_parts_lie_end_to_end_in_a_fixed_order(store: ExpertStore) -> None:
    size = INTERMEDIATE * HIDDEN * 4
    assert [(part.name, part.shape, part.dtype, part.offset, part.num_bytes) for part in store.layout.parts] == [
        ("gate", (INTERMEDIATE, HIDDEN), "F32", 0, size),
        ("up", (INTERMEDIATE, HIDDEN), "F32", size, size),
        ("down", (HIDDEN, INTERMEDIATE), "F32", 2 * size, size),
    ]
    assert store.layout.num_bytes == store.grid.expert_bytes == 3 * size


def test_packed_experts_are_cut_where_one_ends_and_the_next_begins(tmp_path: Path) -> None:
    with open_with(tmp_path, packed_tensors()) as store:
        assert [(part.name, part.shape) for part in store.layout.parts] == [
            ("gate_up", (2 * INTERMEDIATE, HIDDEN)),
            ("down", (HIDDEN, INTERMEDIATE)),
        ]
        for layer in range(store_samples.LAYERS):
            for index in range(EXPERTS):
                assert store.read(ExpertId(layer, index)) == store_samples.expert_bytes(layer, index)


def test_experts_are_no_base_tensors_and_everything_else_is(store: ExpertStore) -> None:
    assert set(store.base_tensors) == set(store_samples.base_tensors())


def test_shared_experts_are_base_tensors(tmp_path: Path) -> None:
    found = store_samples.tensors()
    shared = [f"model.layers.0.mlp.{name}.up_proj.weight" for name in ("shared_expert", "shared_experts")]
    found |= {key: np.zeros((4, HIDDEN), dtype=np.float32) for key in shared}
    with open_with(tmp_path, found) as store:
        assert set(shared) <= set(store.base_tensors)


def test_layers_past_the_last_belong_to_nobody(tmp_path: Path) -> None:
    """DeepSeek-V3 is published with a layer for multi-token prediction."""
    found = store_samples.tensors() | store_samples.expert_tensors(2, 0)
    found["model.layers.2.eh_proj.weight"] = np.zeros((2, 2), dtype=np.float32)
    with open_with(tmp_path, found) as store:
        assert store.grid.moe_layers == (0, 1)
        assert set(store.base_tensors) == set(store_samples.base_tensors())


def test_a_missing_part_of_an_expert_is_named(tmp_path: Path) -> None:
    found = store_samples.tensors()
    del found[f"{STEM}.3.w3.weight"]
    with pytest.raises(CheckpointError, match=r"model\.safetensors: \S+\.1\.\S+\.experts\.3\.w3\.weight is missing"):
        open_with(tmp_path, found)


def test_a_part_that_every_expert_lacks_is_named(tmp_path: Path) -> None:
    found = {key: tensor for key, tensor in store_samples.tensors().items() if ".w2." not in key}
    with pytest.raises(CheckpointError, match=r"layers\.0\.block_sparse_moe\.experts\.0\.w2\.weight is missing"):
        open_with(tmp_path, found)


def test_a_layer_without_its_experts_is_named(tmp_path: Path) -> None:
    found = {key: tensor for key, tensor in store_samples.tensors().items() if STEM not in key}
    with pytest.raises(CheckpointError, match=r"layers\.1\.block_sparse_moe\.experts\.0\.w1\.weight is missing"):
        open_with(tmp_path, found)


def test_an_expert_beyond_the_configs_count_is_named(tmp_path: Path) -> None:
    found = store_samples.tensors() | store_samples.expert_tensors(1, EXPERTS)
    with pytest.raises(CheckpointError, match=r"experts\.4\.w1\.weight is an expert that config\.json does not know"):
        open_with(tmp_path, found)


def test_experts_that_differ_in_dtype_are_refused_with_both_keys(tmp_path: Path) -> None:
    found = store_samples.tensors()
    found[f"{STEM}.2.w1.weight"] = found[f"{STEM}.2.w1.weight"].astype(np.float16)
    with pytest.raises(
        UnsupportedModelError, match=r"layers\.0\S+\.w1\.weight is F32 .*layers\.1\S+2\.w1\.weight is F16"
    ):
        open_with(tmp_path, found)


def test_experts_that_differ_in_shape_are_refused_with_both_keys(tmp_path: Path) -> None:
    found = store_samples.tensors()
    found[f"{STEM}.2.w2.weight"] = np.zeros((HIDDEN, 5), dtype=np.float32)
    with pytest.raises(
        UnsupportedModelError, match=r"layers\.0\S+\.w2\.weight is .*layers\.1\S+2\.w2\.weight is F32 \[8, 5\]"
    ):
        open_with(tmp_path, found)


@pytest.mark.parametrize("dtype", [np.float64, np.int8], ids=["F64", "I8"])
def test_other_dtypes_are_refused_with_the_key(tmp_path: Path, dtype: type[np.generic]) -> None:
    found = {key: tensor.astype(dtype) for key, tensor in store_samples.tensors().items()}
    with pytest.raises(UnsupportedModelError, match=r"experts\.\S+ is (F64|I8); experts must be BF16, F16, F32"):
        open_with(tmp_path, found)


def test_a_base_tensor_of_another_dtype_is_refused_with_the_key(tmp_path: Path) -> None:
    found = store_samples.tensors()
    found["model.norm.weight"] = np.zeros(HIDDEN, dtype=np.float64)
    with pytest.raises(UnsupportedModelError, match=r"model\.norm\.weight is F64"):
        open_with(tmp_path, found)


def test_widths_must_be_those_of_the_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"w1\.weight has shape \[12, 8\] an expert, but config\.json makes it"):
        open_with(tmp_path, store_samples.tensors(), intermediate_size=16)


def test_a_packed_tensor_must_hold_the_configs_number_of_experts(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"experts\.down_proj has shape \[4, 8, 12\], but config\.json counts 8 exp"
    ):
        open_with(tmp_path, packed_tensors(), num_local_experts=8)


def test_unknown_names_below_experts_are_refused_with_the_key(tmp_path: Path) -> None:
    found = store_samples.tensors()
    found[f"{STEM}.0.w1.weight_scale_inv"] = np.zeros(1, dtype=np.float32)
    with pytest.raises(UnsupportedModelError, match=r"w1\.weight_scale_inv is no part of an expert"):
        open_with(tmp_path, found)


def test_two_keys_for_one_part_are_refused_with_both(tmp_path: Path) -> None:
    found = store_samples.tensors()
    found[f"{STEM}.00.w1.weight"] = found[f"{STEM}.0.w1.weight"]
    with pytest.raises(
        CheckpointError, match=r"experts\.0\.w1\.weight and \S+experts\.00\.w1\.weight|00\S+ and \S+\.0\."
    ):
        open_with(tmp_path, found)


def test_packed_and_single_experts_in_one_model_are_refused(tmp_path: Path) -> None:
    found = store_samples.tensors()
    found["model.layers.1.mlp.experts.down_proj"] = np.zeros((EXPERTS, HIDDEN, INTERMEDIATE), dtype=np.float32)
    with pytest.raises(UnsupportedModelError, match="some experts are packed and others are not"):
        open_with(tmp_path, found)


def test_a_supported_family_without_any_expert_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="no experts found"):
        open_with(tmp_path, store_samples.base_tensors())
