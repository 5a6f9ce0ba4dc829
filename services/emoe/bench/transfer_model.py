"""A checkpoint of random experts of one size: what is moved when only the moving is measured.

Whole enough for a loader to open and serve; no model that anybody could run.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

_HIDDEN_SIZE = 1024
_PARTS = 3
_ELEMENT_BYTES = 2


def write_experts(folder: Path, *, expert_bytes: int, num_experts: int) -> int:
    """Returns the bytes of an expert as it came out: whole columns of three matrices."""
    hidden_size = min(_HIDDEN_SIZE, max(64, expert_bytes // (64 * _PARTS * _ELEMENT_BYTES)))
    expert_size = max(1, round(expert_bytes / (_PARTS * _ELEMENT_BYTES * hidden_size)))
    config = _config(hidden_size=hidden_size, expert_size=expert_size, num_experts=num_experts)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {"model.embed_tokens.weight": torch.zeros(8, hidden_size, dtype=torch.bfloat16)}
    noise = torch.Generator().manual_seed(0)
    for index in range(num_experts):
        for name, shape in (
            ("gate_proj", (expert_size, hidden_size)),
            ("up_proj", (expert_size, hidden_size)),
            ("down_proj", (hidden_size, expert_size)),
        ):
            bits = torch.randint(-(2**15), 2**15, shape, dtype=torch.int16, generator=noise)
            tensors[f"model.layers.0.mlp.experts.{index}.{name}.weight"] = bits.view(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors")
    return _PARTS * _ELEMENT_BYTES * hidden_size * expert_size


def _config(*, hidden_size: int, expert_size: int, num_experts: int) -> dict[str, object]:
    return {
        "model_type": "qwen2_moe",
        "architectures": ["Qwen2MoeForCausalLM"],
        "torch_dtype": "bfloat16",
        "vocab_size": 8,
        "hidden_size": hidden_size,
        "intermediate_size": hidden_size,
        "moe_intermediate_size": expert_size,
        "shared_expert_intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "num_experts": num_experts,
        "num_experts_per_tok": 1,
        "decoder_sparse_step": 1,
        "max_position_embeddings": 64,
    }
