"""The shape of the model that ships, and the tokenizer it is trained with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, Qwen2MoeConfig, Qwen2MoeForCausalLM

SPECIAL_TOKENS = ["<pad>", "<bos>", "<eos>", "<sep>"]
CHAT_TEMPLATE = (
    "{{ '<bos>' }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + '<eos>' }}"
    "{% else %}{{ message['content'] + '<sep>' }}{% endif %}{% endfor %}"
)


def build_config(*, vocab_size: int) -> Qwen2MoeConfig:
    """Qwen2-MoE: 6 layers of 32 routed experts (top 4) and a shared one; routed experts are over 80 % of the bytes."""
    return Qwen2MoeConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=32,
        num_experts_per_tok=4,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=64,
        intermediate_size=256,
        norm_topk_prob=True,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        output_router_logits=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        dtype=torch.float32,
    )


def build_model(config: Qwen2MoeConfig, *, seed: int) -> Qwen2MoeForCausalLM:
    torch.manual_seed(seed)
    config._attn_implementation = "flat"
    config._experts_implementation = "flat"
    return Qwen2MoeForCausalLM(config)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Byte-level BPE; digits stand alone so that sums are spelt digit by digit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def wrap_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        sep_token="<sep>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )


def load_tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
