from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import store_samples
from safetensors.numpy import load_file
from store_samples import EXPERTS, HIDDEN, INTERMEDIATE, LAYERS, Tensors

from emoe.core.errors import CheckpointError, UnsupportedModelError
from emoe.store.footprint import geometry_of, measure
from emoe.store.quantisation_config import parse_quantisation
from emoe.store.store import ExpertStore

GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
FP8: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
WEIGHTS: dict[str, Any] = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True}


def compressed(
    layout: str = "pack-quantized", *, group: dict[str, Any] | None = None, **weights: Any
) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": WEIGHTS | weights, **(group or {})}}
    return {"quant_method": "compressed-tensors", "format": layout, "config_groups": groups}


@pytest.mark.parametrize(
    ("config", "label"),
    [
        (FP8, "FP8 in blocks of 128 x 128"),
        (FP8 | {"scale_fmt": "ue8m0", "modules_to_not_convert": ["lm_head"]}, "FP8 in blocks of 128 x 128"),
        (FP8 | {"weight_block_size": None}, "FP8"),
        (compressed(), "INT4 in groups of 128"),
        (compressed(num_bits=8, strategy="channel", group_size=None), "INT8 a row"),
        (compressed("int-quantized", num_bits=8, strategy="channel", group_size=None), "INT8 a row"),
        (compressed("float-quantized", num_bits=8, type="float", strategy="tensor"), "FP8 a tensor"),
        (
            compressed("float-quantized", num_bits=8, type="float", strategy="block", block_structure=[128, 128]),
            "FP8 in blocks of 128 x 128",
        ),
        (compressed(group={"input_activations": {"dynamic": True}}), "INT4 in groups of 128"),
        (GPTQ, "INT4 GPTQ in groups of 128"),
        (GPTQ | {"bits": 8, "group_size": -1, "dynamic": {"-:.*gate": {}}}, "INT8 GPTQ a row"),
    ],
    ids=[
        "DeepSeek-V3",
        "DeepSeek-V3.1",
        "fp8 a tensor",
        "W4A16",
        "W8A16 packed",
        "W8A16",
        "fp8 static weights",
        "fp8 blocks",
        "dynamic activations",
        "gptq",
        "gptq int8",
    ],
)
def test_what_is_paged_has_a_name(config: dict[str, Any], label: str) -> None:
    found = parse_quantisation(config, family="qwen3_moe")
    assert found is not None
    assert found.label == label


@pytest.mark.parametrize("config", [None, {}], ids=["none", "empty"])
def test_a_checkpoint_that_is_not_quantised_is_none(config: object) -> None:
    assert parse_quantisation(config, family="mixtral") is None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"bits": 4}, r"\(unnamed\): this method is not supported; emoe pages mxfp4 .*bfloat16"),
        ({"quant_method": "hqq"}, r"\(hqq\): this method"),
        ({"quant_method": ["gptq"]}, "this method is not supported"),
        ("gptq", r"\(unnamed\)"),
        (
            {"quant_method": "bitsandbytes", "load_in_8bit": True},
            r"\(bitsandbytes\).*compressed-tensors or GPTQ instead",
        ),
        ({"quant_method": "torchao"}, r"\(torchao\): its weights are tensor subclasses"),
        ({"quant_method": "awq"}, r"\(awq\).*take the same model as"),
        ({"quant_method": "mxfp4"}, "qwen3_moe is not published this way"),
        (FP8 | {"activation_scheme": "static"}, "activation_scheme 'static' is not supported"),
        (FP8 | {"fmt": "e5m2"}, "fmt 'e5m2' is not supported"),
        (FP8 | {"expert_dtype": "fp4"}, "expert_dtype 'fp4'"),
        (FP8 | {"weight_block_size": [128]}, r"weight_block_size \[128\]"),
        (GPTQ | {"desc_act": True}, "desc_act"),
        (GPTQ | {"bits": 3}, "3 bits"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        (GPTQ | {"dynamic": {"+:.*down.*": {"bits": 8}}}, "quantised differently"),
        (compressed("nvfp4-pack-quantized", type="float"), "format 'nvfp4-pack-quantized' of 4 bits"),
        (compressed("int-quantized"), "format 'int-quantized' of 4 bits"),
        (compressed("int-quantized", num_bits=8, symmetric=False), "zero points"),
        (compressed(actorder="group"), "actorder"),
        (compressed(strategy="token"), "strategy 'token'"),
        (compressed(group={"input_activations": {"dynamic": False}}), "static scales"),
        (compressed() | {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        (compressed() | {"config_groups": {"a": {}, "b": {}}}, "one group"),
        (compressed() | {"transform_config": {"v": 1}}, "transform_config"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_what_cannot_be_paged_is_refused_by_name_with_what_to_use(config: object, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"model_type qwen3_moe: quantised weights .*{reason}|{reason}"):
        parse_quantisation(config, family="qwen3_moe")


def test_a_family_with_biases_a_layer_is_read_in_its_own_format_alone() -> None:
    with pytest.raises(UnsupportedModelError, match=r"gpt_oss: quantised weights \(fp8\): gpt_oss is not published"):
        parse_quantisation(FP8, family="gpt_oss")


def write_packed(folder: Path, edit: Callable[[Tensors], None] = lambda tensors: None) -> Path:
    """Mixtral in int4, groups of four; one attention weight too."""
    tensors = store_samples.base_tensors()
    shapes = {"w1": (INTERMEDIATE, HIDDEN), "w3": (INTERMEDIATE, HIDDEN), "w2": (HIDDEN, 16)}
    stems = {"model.layers.0.self_attn.q_proj": (HIDDEN, HIDDEN)}
    for layer in range(LAYERS):
        for index in range(EXPERTS):
            stem = f"model.layers.{layer}.block_sparse_moe.experts.{index}"
            stems |= {
                f"{stem}.{name}": (16 if name != "w2" else rows, columns) for name, (rows, columns) in shapes.items()
            }
    for stem, (rows, columns) in stems.items():
        tensors[f"{stem}.weight_packed"] = np.zeros((rows, columns // 8), dtype=np.int32)
        tensors[f"{stem}.weight_scale"] = np.ones((rows, columns // 4), dtype=np.float16)
        tensors[f"{stem}.weight_shape"] = np.array([rows, columns])
    edit(tensors)
    config = store_samples.config(intermediate_size=16, quantization_config=compressed(group_size=4), dtype="float16")
    return store_samples.write(folder, config, tensors)


def test_memory_is_planned_from_the_bytes_as_published_and_the_base_as_it_is_held(tmp_path: Path) -> None:
    folder = write_packed(tmp_path / "model")
    with ExpertStore.open(folder) as store:
        weights = 3 * 16 * HIDDEN
        footprint = measure(store)
        assert footprint.expert_bytes == store.grid.expert_bytes == weights // 2 + weights // 4 * 2
        assert (footprint.dtype, footprint.expert_format) == ("F16", "INT4 in groups of 4")
        plain = sum(tensor.nbytes for tensor in store_samples.base_tensors().values())
        shape_key = load_file(folder / "model.safetensors")["model.layers.0.self_attn.q_proj.weight_shape"]
        assert footprint.base_bytes == plain + HIDDEN * HIDDEN * 2 + shape_key.nbytes
        assert geometry_of(store).base_bytes == footprint.base_bytes


def test_parts_lie_so_that_each_is_aligned_to_its_elements(tmp_path: Path) -> None:
    with ExpertStore.open(write_packed(tmp_path / "model")) as store:
        assert [part.name for part in store.layout.parts] == [
            "gate_codes", "up_codes", "down_codes", "gate_scales", "up_scales", "down_scales",
        ]  # fmt: skip
        assert all(part.offset % (4 if part.dtype == "I32" else 2) == 0 for part in store.layout.parts)


STEM = "model.layers.1.block_sparse_moe.experts.2.w3"


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda t: t.pop(f"{STEM}.weight_scale"), (CheckpointError, r"2\.w3\.weight_scale is missing")),
        (lambda t: t.pop(f"{STEM}.weight_packed"), (CheckpointError, r"2\.w3\.weight_packed is missing")),
        (
            lambda t: t.update({f"{STEM}.weight": np.zeros((16, HIDDEN), dtype=np.float16)}),
            (UnsupportedModelError, r"w3\.weight is no part of an expert .*config\.json says they are INT4"),
        ),
        (
            lambda t: t.update({f"{STEM}.weight_scale": np.ones((16, 1), dtype=np.float16)}),
            (UnsupportedModelError, r"experts differ"),
        ),
    ],
    ids=["a scale is missing", "codes are missing", "an unquantised one", "another group size"],
)
def test_a_checkpoint_that_is_not_what_its_configuration_says_names_the_key(
    edit: Callable[[Tensors], None], complaint: tuple[type[Exception], str], tmp_path: Path
) -> None:
    error, message = complaint
    with pytest.raises(error, match=message):
        ExpertStore.open(write_packed(tmp_path / "model", edit))


def every(leaf: str, value: np.ndarray[Any, Any]) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        tensors.update({key: value for key in tensors if ".experts." in key and key.endswith(f"w1.{leaf}")})

    return edit


def test_scales_of_other_groups_than_the_configuration_says_are_named(tmp_path: Path) -> None:
    edit = every("weight_scale", np.ones((16, 4), dtype=np.float16))
    with pytest.raises(CheckpointError, match=r"w1\.weight_scale has shape \[16, 4\] an expert.*makes it \[16, 2\]"):
        ExpertStore.open(write_packed(tmp_path / "model", edit))


def test_scales_of_a_dtype_that_is_not_read_are_named(tmp_path: Path) -> None:
    edit = every("weight_scale", np.ones((16, 2), dtype=np.uint8))
    with pytest.raises(UnsupportedModelError, match=r"w1\.weight_scale is U8; emoe reads INT4 .* as BF16, F16, F32"):
        ExpertStore.open(write_packed(tmp_path / "model", edit))


def test_a_dtype_to_compute_in_that_is_none_is_an_error(tmp_path: Path) -> None:
    folder = write_packed(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "int4"}))
    with pytest.raises(CheckpointError, match=r"config\.json: dtype must be one of float32, bfloat16, float16"):
        ExpertStore.open(folder)
