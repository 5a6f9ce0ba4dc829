"""What an engine holds in memory, seen from outside its process; then the same where the kernel ends who holds more."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest
import torch
import transformers
from memory_cgroups import memory_cgroup

from emoe.bench.memory import Seen, look_at
from emoe.store.footprint import ModelFootprint, measure
from emoe.store.store import ExpertStore

OVERHEAD_BYTES = 24 * 1024 * 1024
"""What an engine may hold beside its libraries, base weights, slots and KV: modules, index, buffers of a step."""
BUDGET = "25%"
PROMPT = [(place * 37) % 1000 for place in range(48)]
NEW_TOKENS = 8

pytestmark = pytest.mark.timeout(240)  # three processes that import torch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """`stated_bytes`: base, slots and KV at the budget."""

    stated_bytes: int
    all_resident_bytes: int
    """Base and all experts."""


@pytest.fixture(scope="module")
def big_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 MiB of experts in float32, 3 MiB of all else."""
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        vocab_size=1000,
        hidden_size=256,
        moe_intermediate_size=512,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=16,
        num_experts_per_tok=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("big")
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bare_bytes(big_model: Path) -> int:
    """Of a process that has only imported the libraries."""
    return look("bare", big_model).after_bytes


def look(engine: str, model: Path, *, prefix: tuple[str, ...] = ()) -> Seen:
    options: dict[str, object] = {
        "engine": engine,
        "model": str(model),
        "budget": BUDGET,
        "prompt": PROMPT,
        "new_tokens": NEW_TOKENS,
        "threads": 2,
    }
    return asyncio.run(look_at(options, name=engine, prefix=prefix))


def footprint_of(model: Path) -> ModelFootprint:
    with ExpertStore.open(model) as store:
        return measure(store)


def sizes_of(model: Path) -> Sizes:
    footprint = footprint_of(model)
    return Sizes(
        stated_bytes=footprint.base_bytes + footprint.all_expert_bytes // 4 + kv_bytes_of(model),
        all_resident_bytes=footprint.base_bytes + footprint.all_expert_bytes,
    )


def test_anonymous_memory_stays_under_what_is_stated(big_model: Path, bare_bytes: int) -> None:
    seen, sizes = look("emoe", big_model), sizes_of(big_model)
    assert seen.holding["slot_bytes"] == footprint_of(big_model).all_expert_bytes // 4
    assert seen.holding["kv_bytes"] == kv_bytes_of(big_model)
    assert seen.peak_bytes - bare_bytes <= sizes.stated_bytes + OVERHEAD_BYTES
    assert seen.peak_bytes - bare_bytes <= 0.8 * sizes.all_resident_bytes


@pytest.mark.cgroup
def test_a_cgroup_of_what_is_stated_is_enough(big_model: Path, bare_bytes: int) -> None:
    with memory_cgroup() as group:
        sizes = sizes_of(big_model)
        limit_bytes = group.limit(bare_bytes + sizes.stated_bytes + OVERHEAD_BYTES)
        assert limit_bytes < bare_bytes + sizes.all_resident_bytes
        seen = look("emoe", big_model, prefix=group.entering)
        assert seen.holding
        assert group.peak_bytes is None or 0 < group.peak_bytes <= limit_bytes


def kv_bytes_of(model: Path) -> int:
    """One row of keys and values in every layer, as the engine that is looked at makes them."""
    config = transformers.AutoConfig.from_pretrained(model)
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    return int(per_token * (len(PROMPT) + NEW_TOKENS))
