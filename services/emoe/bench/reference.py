"""transformers as the yardstick: its own loading, its own static-batch `generate()`, its own experts functions."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import transformers

from emoe.bench.failures import BenchmarkError
from emoe.bench.rows import Timing


def load_reference(model: Path, *, dtype: str = "auto", **options: Any) -> Any:
    """In the checkpoint's own dtype unless another is named; no token ends an answer. `options` are transformers'."""
    transformers.utils.logging.disable_progress_bar()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=dtype, attn_implementation="sdpa", **options
    )
    # What is not set in a call is taken from here, the end-of-answer tokens too.
    loaded.generation_config = transformers.GenerationConfig()
    return loaded.eval()


def time_generate(model: Any, prompts: list[list[int]], *, new_tokens: int) -> Timing:
    clock = _FirstTokenClock()
    began = time.perf_counter()
    answers = generate(model, prompts, new_tokens=new_tokens, criterion=clock)
    ended = time.perf_counter()
    if answers.sequences.shape[1] != len(prompts[0]) + new_tokens:
        raise BenchmarkError("transformers ended its answers early; the times cannot be compared")
    return Timing(prefill_seconds=clock.first_seconds - began, total_seconds=ended - began)


def generate(model: Any, prompts: list[list[int]], *, new_tokens: int, criterion: Any = None) -> Any:
    """Greedy; `sequences` and `past_key_values`. All prompts have the same length, so nothing is padded."""
    config = transformers.GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, pad_token_id=0, return_dict_in_generate=True
    )
    ids_NT = torch.tensor(prompts)
    with torch.inference_mode():
        return model.generate(
            ids_NT,
            attention_mask=torch.ones_like(ids_NT),
            generation_config=config,
            stopping_criteria=transformers.StoppingCriteriaList([] if criterion is None else [criterion]),
        )


class _FirstTokenClock(transformers.StoppingCriteria):
    """Asked after each token whether to stop; notes when that was for the first time."""

    first_seconds = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:  # noqa: ARG002 - transformers' signature
        self.first_seconds = self.first_seconds or time.perf_counter()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
