"""Training with most experts absent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

from absence import BATCHES_TO_LEARN, ExpertAbsence
from architecture import build_model
from corpus import Row, encode
from flat import FlatBatch, flatten
from train import RouterTap


class ChoiceTap:
    """The experts that each layer chose in the last forward pass."""

    def __init__(self, model: Qwen2MoeForCausalLM) -> None:
        self.chosen: list[set[int]] = []
        for layer in model.model.layers:
            layer.mlp.gate.register_forward_hook(
                lambda _gate, _args, out: self.chosen.append(set(out[2].unique().tolist()))
            )


@pytest.fixture
def batch(rows: dict[str, list[Row]], tokenizer: Tokenizer) -> FlatBatch:
    return flatten(encode(tokenizer, rows["math"]), prompt_weight=1.0, device=torch.device("cpu"))


@torch.inference_mode()
def forward(model: Qwen2MoeForCausalLM, batch: FlatBatch) -> torch.Tensor:
    hidden: torch.Tensor = model.model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, flat_batch=batch
    ).last_hidden_state
    return hidden


def test_nothing_changes_when_no_example_is_concerned(config: Qwen2MoeConfig, batch: FlatBatch) -> None:
    model = build_model(config, seed=0)
    expected = forward(model, batch)
    absence = ExpertAbsence(model, share=0.0, rng=np.random.default_rng(0))
    for _ in range(BATCHES_TO_LEARN + 2):
        absence.begin(batch)
        torch.testing.assert_close(forward(model, batch), expected)


def test_concerned_examples_meet_only_favourites_of_earlier_batches(config: Qwen2MoeConfig, batch: FlatBatch) -> None:
    model = build_model(config, seed=0)
    absence = ExpertAbsence(model, share=1.0, rng=np.random.default_rng(0))
    choices, logits = ChoiceTap(model), RouterTap(model)
    for _ in range(BATCHES_TO_LEARN):
        absence.begin(batch)
        forward(model, batch)
    assert max(map(len, choices.chosen)) > 4
    choices.chosen.clear()
    logits.logits.clear()
    absence.begin(batch)
    forward(model, batch)
    assert max(map(len, choices.chosen)) <= 4  # half of eight at most
    assert all(x.isfinite().all() for x in logits.logits)  # the balance loss still sees all experts
