"""The training scripts are no package: their folder goes on the path, as it is when they run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[3] / "models" / "training"))

from tokenizers import Tokenizer
from transformers import Qwen2MoeConfig

from architecture import train_tokenizer
from corpus import TASKS, Row

SENTENCES = (
    "The kettle sings while the rain drums on the roof.",
    "Seven geese crossed 12 fields before noon.",
    "Could you tell me when the last tram leaves?",
    "Grüße aus Köln, où es-tu donc ?",
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products lose more to waiting for a second core than they win."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def rows() -> dict[str, list[Row]]:
    """Eight rows a task; those of later tasks have longer prompts."""
    return {
        task: [
            Row(task=task, subtask=f"{task}_{number % 2}", prompt=" ".join(SENTENCES[: 1 + place % 4]) + f" {number}",
                response=SENTENCES[number % 4])
            for number in range(8)
        ]
        for place, task in enumerate(TASKS)
    }  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(SENTENCES, vocab_size=320)


@pytest.fixture
def config() -> Qwen2MoeConfig:
    return Qwen2MoeConfig(
        vocab_size=320,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        intermediate_size=32,
        norm_topk_prob=True,
        initializer_range=0.3,  # large enough that routing and attention are far from even
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
