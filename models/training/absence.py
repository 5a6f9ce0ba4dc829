"""Trains part of the examples as they will be served: with most experts absent.

A model that has always had all its experts falls apart when a quarter of them must do: the answer's first tokens meet
a router that picked what it never picks. Here some examples of each batch are routed only among the experts that
their task, or all tasks together, used most in the last batches.

T tokens, L layers, E experts, K top-k, P pools of usage: one a task, and one of all tasks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import Qwen2MoeForCausalLM

from corpus import TASKS
from flat import FlatBatch

RESIDENT_SHARES = (0.25, 0.25, 0.375, 0.5)
ALL_TASKS_SHARE = 1 / 3
"""Of the examples concerned, those that are left with the experts of all tasks together."""
DECAY = 0.9
BATCHES_TO_LEARN = 2

Routed = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""What Qwen2-MoE's router returns: logits over all experts, top-k weights, top-k expert ids."""


class ExpertAbsence:
    """Hooks on the routers of a model. `begin` says what holds for the next forward pass."""

    def __init__(self, model: Qwen2MoeForCausalLM, *, share: float, rng: np.random.Generator) -> None:
        self._share, self._rng, self._batches = share, rng, 0
        gates = [layer.mlp.gate for layer in model.model.layers]
        self._use_PLE = torch.zeros(len(TASKS) + 1, len(gates), model.config.num_experts)
        self._absent_TLE: torch.Tensor | None = None
        self._task_T = torch.zeros(0, dtype=torch.long)
        for index, gate in enumerate(gates):
            gate.register_forward_hook(lambda gate, _args, out, index=index: self._route(index, gate, out))

    def begin(self, batch: FlatBatch) -> None:
        lengths = torch.tensor(batch.lengths)
        task = torch.tensor([TASKS.index(name) for name in batch.tasks])
        restricted = torch.from_numpy(self._rng.random(len(task)) < self._share)
        pooled = torch.from_numpy(self._rng.random(len(task)) < ALL_TASKS_SHARE)
        pool = torch.where(pooled, len(TASKS), task)
        device = batch.input_ids.device
        self._use_PLE = self._use_PLE.to(device) * DECAY
        self._task_T, pool_T, restricted_T = (x.repeat_interleave(lengths).to(device) for x in (task, pool, restricted))
        if self._batches >= BATCHES_TO_LEARN:
            num_resident = round(self._rng.choice(RESIDENT_SHARES) * self._use_PLE.shape[-1])
            self._absent_TLE = ~_favourites(self._use_PLE, num_resident)[pool_T] & restricted_T[:, None, None]
        self._batches += 1

    def _route(self, index: int, gate: Any, routed: Routed) -> Routed:
        logits_TE = routed[0]
        self._observe(index, logits_TE.detach(), gate.top_k)
        if self._absent_TLE is None:
            return routed
        absent_TE = self._absent_TLE[:, index]
        probs_TE = logits_TE.masked_fill(absent_TE, -torch.inf).float().softmax(-1)
        weights_TK, expert_ids_TK = probs_TE.topk(gate.top_k, dim=-1)
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
        return logits_TE, weights_TK.to(logits_TE.dtype), expert_ids_TK

    def _observe(self, index: int, logits_TE: torch.Tensor, num_topk: int) -> None:
        """Counts what each task would have chosen among all experts; every task weighs the same in the common pool."""
        wanted_TE = torch.zeros_like(logits_TE, dtype=torch.float32)
        wanted_TE.scatter_(-1, logits_TE.topk(num_topk, dim=-1).indices, 1.0)
        use_PE = torch.zeros_like(self._use_PLE[:, index]).index_add_(0, self._task_T, wanted_TE)
        shares_PE = use_PE / use_PE.sum(-1, keepdim=True).clamp(min=1)
        shares_PE[-1] = shares_PE[:-1].mean(0)
        self._use_PLE[:, index] += shares_PE


def _favourites(use_PLE: torch.Tensor, number: int) -> torch.Tensor:
    most_used_PLN = use_PLE.topk(number, dim=-1).indices
    return torch.zeros_like(use_PLE, dtype=torch.bool).scatter_(-1, most_used_PLN, True)
