"""Quantised checkpoints through the engine, paged as they are published, against the same weights dequantised."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
import transformers
from support import quantised
from support.engines import assert_logits_close, generate, open_parts, random_prompts

from emoe.core.experts import ExpertId, from_grid
from emoe.loader.main import serving
from emoe.loader.settings import LoaderSettings
from emoe.runtime.channels import open_channel
from emoe.runtime.grids import ModelId
from emoe.store.store import ExpertStore
from emoe.v1 import loader_pb2_grpc
from emoe.worker import experts
from emoe.worker.base_files import recreate
from emoe.worker.build import as_loaded
from emoe.worker.loader_source import LoaderSource
from emoe.worker.loading import experts_modules, load_model
from emoe.worker.quantised.weights import QuantisedWeights

PROMPTS = random_prompts([21, 5, 33])
FAMILY_OF = dict.fromkeys(quantised.FORMATS, "qwen3_moe") | {
    "fp8 blocks": "deepseek_v3",
    "gptq int4": "mixtral",
    "int4": "mixtral",
    "int4 with zeros": "qwen2_moe",
}


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))


def as_transformers_has_it(folder: Path, dtype: torch.dtype) -> transformers.PreTrainedModel:
    model: transformers.PreTrainedModel = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=transformers.Mxfp4Config(dequantize=True),
        dtype=dtype,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    return model.eval()


def assert_equals_transformers(folder: Path, model: torch.nn.Module, *, family_slots: int) -> None:
    with open_parts(folder, miss_policy="load", num_slots=family_slots) as parts:
        _, logits = generate(parts.build_engine(), PROMPTS, max_tokens=1)
    with torch.inference_mode():
        for row, prompt in enumerate(PROMPTS):
            assert_logits_close(logits[0][row], model(torch.tensor([prompt])).logits[0, -1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
def test_mxfp4_experts_are_decoded_bit_for_bit_as_transformers_does(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = quantised.write_mxfp4(tmp_path, dtype=dtype)
    theirs = dict(as_transformers_has_it(folder, dtype).named_parameters())
    with open_parts(folder, miss_policy="reroute") as parts:
        modules = experts_modules(parts.model)
        for layer, index in from_grid(parts.residency.grid.all_experts()):
            weights = getattr(modules[layer], experts.LINK).weights
            assert isinstance(weights, QuantisedWeights)
            slot = parts.residency.table.slot(ExpertId(layer, index))
            for name in ("gate_up", "down"):
                wanted = theirs[f"model.layers.{layer}.mlp.experts.{name}_proj"][index]
                assert torch.equal(weights.weight(slot, name), wanted.t())


def test_mxfp4_logits_are_those_of_transformers_dequantised(tmp_path: Path) -> None:
    folder = quantised.write_mxfp4(tmp_path)
    model = as_transformers_has_it(folder, torch.float32)
    assert_equals_transformers(folder, model, family_slots=3)


@pytest.mark.parametrize("name", quantised.FORMATS)
def test_logits_are_those_of_transformers_on_the_dequantised_weights(name: str, tmp_path: Path) -> None:
    folder, twin = quantised.write(name, FAMILY_OF[name], tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        twin, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    assert_equals_transformers(folder, model, family_slots=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", quantised.FORMATS)
def test_every_weight_is_decoded_bit_for_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Experts in their slots, and linears outside them once at load."""
    folder, twin = quantised.write(name, FAMILY_OF[name], tmp_path, dtype=dtype)
    with open_parts(twin, miss_policy="reroute") as plain, open_parts(folder, miss_policy="reroute") as parts:
        theirs = plain.model.state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in parts.model.state_dict().items())
        modules = experts_modules(parts.model)
        for expert in from_grid(parts.residency.grid.all_experts()):
            weights = getattr(modules[expert.layer], experts.LINK).weights
            slot, twin_slot = parts.residency.table.slot(expert), plain.residency.table.slot(expert)
            gate_up = torch.cat([weights.weight(slot, "gate"), weights.weight(slot, "up")])
            assert torch.equal(gate_up, plain.residency.arena.part(twin_slot, "gate_up"))
            assert torch.equal(weights.weight(slot, "down"), plain.residency.arena.part(twin_slot, "down"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", ["mxfp4", *quantised.FORMATS])
def test_any_budget_gives_the_logits_of_all_resident_bit_for_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    if name == "mxfp4":
        folder = quantised.write_mxfp4(tmp_path, dtype=dtype)
    else:
        folder, _ = quantised.write(name, FAMILY_OF[name], tmp_path, dtype=dtype)
    outcomes = []
    for num_slots in (None, 4):
        with open_parts(folder, miss_policy="load", num_slots=num_slots) as parts:
            assert parts.model.dtype == dtype
            outcomes.append(generate(parts.build_engine(), PROMPTS, max_tokens=4))
    (tokens, logits), (paged_tokens, paged_logits) = outcomes
    assert paged_tokens == tokens
    assert all(torch.equal(paged, full) for paged, full in zip(paged_logits, logits, strict=True))


@pytest.mark.parametrize("name", ["mxfp4", "fp8 blocks", "int4"])
def test_rerouting_with_few_residents_gives_the_logits_of_the_dequantised_model(name: str, tmp_path: Path) -> None:
    if name == "mxfp4":
        folder = quantised.write_mxfp4(tmp_path / "quantised")
        twin = tmp_path / "twin"
        model = as_transformers_has_it(folder, torch.float32)
        quantised.save(twin, {name: tensor.detach() for name, tensor in model.state_dict().items()}, None, like=folder)
    else:
        folder, twin = quantised.write(name, FAMILY_OF[name], tmp_path)
    outcomes = []
    for path in (folder, twin):
        with open_parts(path, miss_policy="reroute", num_slots=14) as parts:
            outcomes.append(generate(parts.build_engine(), PROMPTS, max_tokens=6))
    assert outcomes[0][0] == outcomes[1][0]
    for ours, plain in zip(outcomes[0][1], outcomes[1][1], strict=True):
        assert_logits_close(ours, plain)


@pytest.mark.parametrize("name", ["mxfp4", "int4"])
async def test_a_worker_without_the_files_pulls_quantised_experts_as_they_are_published(
    name: str, tmp_path: Path
) -> None:
    if name == "mxfp4":
        folder = quantised.write_mxfp4(tmp_path / "model")
    else:
        folder, _ = quantised.write(name, FAMILY_OF[name], tmp_path)
    with ExpertStore.open(folder) as store:
        model = ModelId(digest=store.digest, family=store.family)
        settings = LoaderSettings(model=folder, drain_seconds=0)
        async with serving(settings) as host, open_channel(host.address) as channel:
            await recreate(loader_pb2_grpc.LoaderServiceStub(channel), model, tmp_path / "copy")
            source = LoaderSource(host.address, model)
            try:
                for expert in from_grid(store.grid.all_experts()):
                    pulled = bytearray(store.layout.num_bytes)
                    await asyncio.to_thread(source.read_into, expert, memoryview(pulled))
                    assert pulled == store.read(expert)
            finally:
                source.close()
        with ExpertStore.open(tmp_path / "copy") as copy:
            assert (copy.digest, copy.layout) == (store.digest, store.layout)
            ours, theirs = (load_model(as_loaded(one), torch.device("cpu")).state_dict() for one in (copy, store))
            assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
