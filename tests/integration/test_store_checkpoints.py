"""The store against checkpoints of every family as transformers writes them, with safetensors as the judge."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from support import quantised
from support.base_tensors import read_base_tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig

from emoe.core.errors import CheckpointError
from emoe.core.experts import ExpertId, RoutingRule, from_grid
from emoe.store.footprint import measure
from emoe.store.store import ExpertStore

LAYERS, EXPERTS, TOP_K, HIDDEN, INTERMEDIATE = 3, 8, 4, 16, 24
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}

SHARED: dict[str, object] = {
    "vocab_size": 64,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts_per_tok": TOP_K,
}
DEEPSEEK: dict[str, object] = {
    "intermediate_size": 32,
    "moe_intermediate_size": INTERMEDIATE,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_group": 4,
    "topk_group": 2,
}
QWEN: dict[str, object] = {
    "intermediate_size": 32,
    "moe_intermediate_size": INTERMEDIATE,
    "num_experts": EXPERTS,
    "mlp_only_layers": [1],
}
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "mixtral": ("MixtralConfig", {"intermediate_size": INTERMEDIATE, "num_local_experts": EXPERTS}),
    "olmoe": ("OlmoeConfig", {"intermediate_size": INTERMEDIATE, "num_experts": EXPERTS}),
    "qwen2_moe": ("Qwen2MoeConfig", {**QWEN, "shared_expert_intermediate_size": 16}),
    "qwen3_moe": ("Qwen3MoeConfig", {**QWEN, "head_dim": 8}),
    "deepseek_v2": (
        "DeepseekV2Config",
        {**DEEPSEEK, "q_lora_rank": None, "topk_method": "group_limited_greedy"},
    ),
    "deepseek_v3": ("DeepseekV3Config", {**DEEPSEEK, "q_lora_rank": 8}),
    "gpt_oss": (
        "GptOssConfig",
        {"intermediate_size": INTERMEDIATE, "num_local_experts": EXPERTS, "head_dim": 8},
    ),
}
GROUPED = {"deepseek_v2": 1, "deepseek_v3": 2}
DENSE_LAYERS = {"qwen2_moe": {1}, "qwen3_moe": {1}, "deepseek_v2": {0}, "deepseek_v3": {0}}


def save(family: str, folder: Path, *, dtype: torch.dtype = torch.float32, max_shard_size: str = "5GB") -> Path:
    name, values = FAMILIES[family]
    config: PreTrainedConfig = getattr(transformers, name)(**SHARED, **values)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def judge_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor as safetensors reads it."""
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    return found


def expert_as_published(tensors: dict[str, torch.Tensor], family: str, expert: ExpertId) -> dict[str, torch.Tensor]:
    layer, index = expert
    if family == "gpt_oss":
        stem = f"model.layers.{layer}.mlp.experts."
        names = {"gate_up": "gate_up_proj", "gate_up_bias": "gate_up_proj_bias"}
        names |= {"down": "down_proj", "down_bias": "down_proj_bias"}
        return {part: tensors[stem + name][index] for part, name in names.items()}
    module = "block_sparse_moe" if family == "mixtral" else "mlp"
    names = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    if family == "mixtral":
        names = {"gate": "w1", "up": "w3", "down": "w2"}
    stem = f"model.layers.{layer}.{module}.experts.{index}."
    return {part: tensors[f"{stem}{name}.weight"] for part, name in names.items()}


def as_tensor(data: bytes, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=DTYPES[dtype]).reshape(shape)


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"], ids=["one file", "sharded"])
def test_every_expert_and_base_tensor_is_what_safetensors_reads(
    family: str, max_shard_size: str, tmp_path: Path
) -> None:
    folder = save(family, tmp_path / family, max_shard_size=max_shard_size)
    assert len(list(folder.glob("*.safetensors"))) > 1 or max_shard_size == "5GB"
    tensors = judge_of(folder)
    num_bytes = 0
    with ExpertStore.open(folder) as store:
        for expert in from_grid(store.grid.all_experts()):
            data = store.read(expert)
            published = expert_as_published(tensors, family, expert)
            assert published.keys() == {part.name for part in store.layout.parts}
            for part in store.layout.parts:
                found = as_tensor(data[part.offset : part.offset + part.num_bytes], part.dtype, part.shape)
                assert torch.equal(found, published[part.name])
            num_bytes += len(data)
        assert store.counters.num_bytes_asked == num_bytes
        for key, entry in store.base_tensors.items():
            assert torch.equal(as_tensor(read_base_tensor(store, key), entry.dtype, entry.shape), tensors[key])
            num_bytes += entry.num_bytes
    assert num_bytes == sum(tensor.nbytes for tensor in tensors.values())


def test_the_grid_is_that_of_the_config(family: str, tmp_path: Path) -> None:
    with ExpertStore.open(save(family, tmp_path / family)) as store:
        assert store.family == family
        assert store.grid.moe_layers == tuple(sorted(set(range(LAYERS)) - DENSE_LAYERS.get(family, set())))
        groups = (
            {"num_groups": 4, "topk_groups": 2, "group_score_experts": GROUPED[family]} if family in GROUPED else {}
        )
        assert store.grid.rule == RoutingRule(num_experts=EXPERTS, top_k=TOP_K, **groups)
        assert store.grid.expert_bytes == sum(math.prod(part.shape) * 4 for part in store.layout.parts)
        assert measure(store).num_experts_total == EXPERTS * len(store.grid.moe_layers)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["BF16", "F16"])
def test_half_precision_is_read_as_stored(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = save("qwen2_moe", tmp_path / "half", dtype=dtype)
    tensors = judge_of(folder)
    with ExpertStore.open(folder) as store:
        assert DTYPES[store.dtype] == dtype
        published = expert_as_published(tensors, "qwen2_moe", ExpertId(2, 5))
        data = b"".join(published[part.name].view(torch.uint8).numpy().tobytes() for part in store.layout.parts)
        assert store.read(ExpertId(2, 5)) == data


def test_the_single_file_form_reads_an_expert_in_one_call(tmp_path: Path) -> None:
    """transformers writes an expert's tensors next to each other, in an order of its own."""
    with ExpertStore.open(save("olmoe", tmp_path / "olmoe")) as store:
        store.read(ExpertId(1, 3))
        assert store.counters.num_reads == 1


def test_a_folder_linked_into_place_as_in_the_hub_cache_is_read(tmp_path: Path) -> None:
    blobs = save("olmoe", tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    with ExpertStore.open(snapshot) as linked, ExpertStore.open(blobs) as plain:
        assert linked.digest == plain.digest
        assert linked.read(ExpertId(0, 0)) == plain.read(ExpertId(0, 0))


@pytest.mark.parametrize("name", ["mxfp4", *quantised.FORMATS])
def test_a_quantised_expert_is_its_published_tensors_byte_for_byte(name: str, tmp_path: Path) -> None:
    if name == "mxfp4":
        folder = quantised.write_mxfp4(tmp_path, dtype=torch.bfloat16)
        names = {f"{part}_{leaf}" for part in ("gate_up_proj", "down_proj") for leaf in ("blocks", "scales", "bias")}
    else:
        folder, _ = quantised.write(name, "qwen3_moe", tmp_path, dtype=torch.bfloat16)
    tensors = judge_of(folder)
    num_bytes = 0
    with ExpertStore.open(folder) as store:
        for expert in from_grid(store.grid.all_experts()):
            stem = f"model.layers.{expert.layer}.mlp.experts."
            if name == "mxfp4":
                published = [tensors[stem + name][expert.index] for name in names]
            else:
                of_one = (key for key in tensors if key.startswith(f"{stem}{expert.index}."))
                published = [tensors[key] for key in of_one if not key.endswith(("weight_shape", "g_idx"))]
            data = store.read(expert)
            found = {data[part.offset : part.offset + part.num_bytes] for part in store.layout.parts}
            assert found == {tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for tensor in published}
            assert len(data) == sum(tensor.nbytes for tensor in published) == store.grid.expert_bytes
            num_bytes += len(data)
        assert store.counters.num_bytes_asked == num_bytes == measure(store).all_expert_bytes
        assert store.dtype == "BF16"


def test_a_quantised_expert_that_changes_on_disk_is_told(tmp_path: Path) -> None:
    folder, _ = quantised.write("fp8 blocks", "qwen3_moe", tmp_path)
    with ExpertStore.open(folder) as store:
        before = store.read(ExpertId(0, 1))
    key = "model.layers.0.mlp.experts.1.up_proj.weight_scale_inv"
    tensors = judge_of(folder)
    tensors[key][0, 0] *= 2
    quantised.save(folder, tensors, quantised.quantisation_config("fp8 blocks"))
    with ExpertStore.open(folder) as store, pytest.raises(CheckpointError, match=f"bytes of layer 0.*{key}"):
        assert store.read(ExpertId(0, 1)) == before
