"""Small random checkpoints of every supported family, written by transformers as it would publish them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

COMMON: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
MLA: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "intermediate_size": 48,
    "first_k_dense_replace": 1,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.5,
}

SPECIAL_TOKENS = ["<pad>", "<bos>", "<eos>", "<sep>"]
CHAT_TEMPLATE = "<bos>{% for m in messages %}{{ m['content'] }}<sep>{% endfor %}"

CONFIGS: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "mixtral": lambda: transformers.MixtralConfig(**COMMON, intermediate_size=48, num_local_experts=6),
    "olmoe": lambda: transformers.OlmoeConfig(
        **COMMON | {"num_key_value_heads": 4}, intermediate_size=24, num_experts=8, norm_topk_prob=False
    ),
    "qwen2_moe": lambda: transformers.Qwen2MoeConfig(
        **COMMON, moe_intermediate_size=24, shared_expert_intermediate_size=40, intermediate_size=48, num_experts=8
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **COMMON, head_dim=16, moe_intermediate_size=24, intermediate_size=48, num_experts=8, norm_topk_prob=True
    ),
    "deepseek_v2": lambda: transformers.DeepseekV2Config(**COMMON | MLA, topk_method="group_limited_greedy"),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(**COMMON | MLA, norm_topk_prob=True),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **COMMON,
        head_dim=16,
        intermediate_size=24,
        num_local_experts=6,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}


def build(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
    """Weights large enough that routing and logits differ clearly between tokens."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=torch.float32)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and "norm" not in name:
            tensor.normal_(0.0, 0.3 if "experts" in name else 0.15)
        if name.endswith(("gate.weight", "router.weight")):
            tensor.normal_(0.0, 1.0)
    return model.to(dtype).eval()


def save(family: str, folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    build(family, seed=seed, dtype=dtype).save_pretrained(folder, **options)
    return folder


def save_with_tokenizer(
    family: str, folder: Path, *, chat_template: str | None = CHAT_TEMPLATE, **options: Any
) -> Path:
    """Also a byte-level tokenizer: a token a byte, after four special ones."""
    save(family, folder, **options)
    vocab = {token: number for number, token in enumerate(SPECIAL_TOKENS + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", chat_template=chat_template
    ).save_pretrained(folder)
    return folder
