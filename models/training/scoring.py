"""Runs a saved checkpoint over held-out examples: likelihoods, expert choices, greedy answers.

A subset of the experts can be made the only ones there: the router then chooses among them, with the weights that it
would give had the others never existed. T tokens, L layers, E experts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from corpus import Example
from flat import FlatBatch, flatten
from metrics import Score

PROMPT_MARK = 0.5
"""The loss weight of a prompt's tokens: told from a response's (1) and from a last token's, which predicts none (0)."""


class Scorer:
    """A checkpoint as plain transformers loads it, in float32, with a hook on each router."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        torch.nn.Module.to(self.model, device)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.device = device
        self._layers = [layer.mlp for layer in self.model.model.layers]
        self._resident_LE: torch.Tensor | None = None
        self._choices_LE = np.zeros((len(self._layers), self.model.config.num_experts), dtype=np.int64)
        for index, layer in enumerate(self._layers):
            layer.gate.register_forward_hook(lambda gate, _args, out, index=index: self._route(index, gate, out))

    @contextlib.contextmanager
    def only_resident(self, resident_LE: np.ndarray | None) -> Iterator[None]:
        """Within it, only these experts exist; None: all."""
        self._resident_LE = None if resident_LE is None else torch.from_numpy(resident_LE).to(self.device)
        try:
            yield
        finally:
            self._resident_LE = None

    @torch.inference_mode()
    def score(self, examples: Sequence[Example], *, tokens_per_batch: int = 8192) -> Score:
        """Teacher-forced, in flat batches without padding."""
        self._choices_LE[:] = 0
        nll, response_nll, num_tokens, num_response_tokens = 0.0, 0.0, 0, 0
        with self._flat():
            for chosen in _batches(examples, tokens_per_batch):
                batch = flatten(chosen, prompt_weight=PROMPT_MARK, device=self.device)
                losses_T = self._losses(batch)
                counted_T, response_T = batch.loss_weights > 0, batch.loss_weights == 1
                nll += losses_T[counted_T].sum().item()
                response_nll += losses_T[response_T].sum().item()
                num_tokens += int(counted_T.sum())
                num_response_tokens += int(response_T.sum())
        return Score(
            response_nll=response_nll,
            num_response_tokens=num_response_tokens,
            nll=nll,
            num_tokens=num_tokens,
            choices_LE=self._choices_LE.copy(),
        )

    @torch.inference_mode()
    def answer(self, prompts: Sequence[str], *, max_new_tokens: int) -> list[str]:
        """Greedy answers to one padded batch of prompts, through the chat template and `generate`."""
        texts = [
            self.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False)
            for prompt in prompts
        ]
        inputs = self.tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt").to(self.device)
        inputs.pop("token_type_ids", None)
        tokens = self.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        return [str(text) for text in self.tokenizer.batch_decode(answers, skip_special_tokens=True)]

    @contextlib.contextmanager
    def _flat(self) -> Iterator[None]:
        config = self.model.config
        before = config._attn_implementation, config._experts_implementation
        config._attn_implementation = config._experts_implementation = "flat"
        try:
            yield
        finally:
            config._attn_implementation, config._experts_implementation = before

    def _losses(self, batch: FlatBatch) -> torch.Tensor:
        hidden_TD = self.model.model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, flat_batch=batch
        ).last_hidden_state[0]
        return cross_entropy(self.model.lm_head(hidden_TD).float(), batch.targets, reduction="none")

    def _route(
        self, index: int, gate: Any, routed: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self._resident_LE is not None:
            routed = _route_among(routed[0], self._resident_LE[index], num_topk=gate.top_k, norm=gate.norm_topk_prob)
        chosen = torch.bincount(routed[2].reshape(-1), minlength=self._choices_LE.shape[1])
        self._choices_LE[index] += chosen.cpu().numpy()
        return routed


def _route_among(
    logits_TE: torch.Tensor, resident_E: torch.Tensor, *, num_topk: int, norm: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What Qwen2-MoE's router returns, were the resident experts the only ones."""
    logits_TE = logits_TE.masked_fill(~resident_E, -torch.inf)
    weights_TK, expert_ids_TK = logits_TE.float().softmax(-1).topk(num_topk, dim=-1)
    if norm:
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
    return logits_TE, weights_TK.to(logits_TE.dtype), expert_ids_TK


def _batches(examples: Sequence[Example], tokens_per_batch: int) -> Iterator[list[Example]]:
    batch: list[Example] = []
    size = 0
    for example in examples:
        batch.append(example)
        size += len(example.ids)
        if size >= tokens_per_batch:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
