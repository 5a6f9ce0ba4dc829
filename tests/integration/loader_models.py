"""The checkpoint that loaders under test serve and fetch: experts of more than one message, weights of two shards."""

from __future__ import annotations

from pathlib import Path

from emoe.core.experts import ExpertId

NUM_LAYERS, NUM_EXPERTS, TOP_K = 2, 8, 2
ALL_EXPERTS = [ExpertId(layer, index) for layer in range(NUM_LAYERS) for index in range(NUM_EXPERTS)]
HALF = 7_000_000
"""Bytes: about half of a shard."""
NEEDED = {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors.index.json"}
"""Of what is published, beside the shards."""


def save(folder: Path, *, max_shard_size: str = "5GB") -> Path:
    """A Qwen2-MoE as transformers saves it."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    config = Qwen2MoeConfig(
        vocab_size=64,
        hidden_size=640,
        intermediate_size=64,
        moe_intermediate_size=160,
        shared_expert_intermediate_size=32,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=NUM_EXPERTS,
        num_experts_per_tok=TOP_K,
        max_position_embeddings=64,
    )
    Qwen2MoeForCausalLM(config).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def publish(folder: Path) -> Path:
    """Two shards, and what publishers leave beside them."""
    save(folder, max_shard_size="16MB")
    (folder / "tokenizer.json").write_text("{}")
    for name in ("README.md", "pytorch_model.bin", "model.gguf", "consolidated.safetensors"):
        (folder / name).write_bytes(b"not needed" * 100)
    return folder


def shards(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("model-*.safetensors")}
