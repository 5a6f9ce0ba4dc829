"""A flat batch and the two functions that let transformers' own model train on it.

Examples lie end to end in one row of T tokens, so that no matrix product sees padding. Attention groups examples
of like length; experts see their tokens sorted. Both are registered under the name `flat`.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
import torch
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from corpus import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlatBatch:
    """`groups` index the flat row: each is [examples, longest], short ones filled with their last position."""

    input_ids: torch.Tensor  # [1, T]
    position_ids: torch.Tensor  # [1, T]
    targets: torch.Tensor  # [T]; the next token
    loss_weights: torch.Tensor  # [T]; 0 where there is no next token
    groups: list[torch.Tensor]
    inverse: torch.Tensor  # [T]; where each flat position lies in the concatenated groups
    lengths: list[int]  # of the examples, in their order
    tasks: list[str]


def flatten(
    examples: list[Example], *, prompt_weight: float, device: torch.device, group_tokens: int = 2048
) -> FlatBatch:
    """Lays the examples end to end, short ones first; `prompt_weight` is the loss weight of tokens of the prompt."""
    ordered = sorted(examples, key=lambda example: len(example.ids))
    lengths = [len(example.ids) for example in ordered]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    ids = np.concatenate([example.ids for example in ordered])
    weights = np.concatenate([_loss_weights(example, prompt_weight) for example in ordered])
    groups, inverse = _group(starts, lengths, group_tokens)
    return FlatBatch(
        input_ids=torch.from_numpy(ids).long()[None].to(device),
        position_ids=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None].to(device),
        targets=torch.from_numpy(np.roll(ids, -1)).long().to(device),
        loss_weights=torch.from_numpy(weights).to(device),
        groups=[torch.from_numpy(group).to(device) for group in groups],
        inverse=torch.from_numpy(inverse).to(device),
        lengths=lengths,
        tasks=[example.task for example in ordered],
    )


def _loss_weights(example: Example, prompt_weight: float) -> np.ndarray:
    weights = np.ones(len(example.ids), dtype=np.float32)
    weights[: example.num_prompt - 1] = prompt_weight
    weights[-1] = 0.0
    return weights


def _group(starts: np.ndarray, lengths: list[int], group_tokens: int) -> tuple[list[np.ndarray], np.ndarray]:
    groups: list[np.ndarray] = []
    inverse = np.empty(sum(lengths), dtype=np.int64)
    first, offset = 0, 0
    while first < len(lengths):
        last = first + 1
        while last < len(lengths) and (last + 1 - first) * lengths[last] <= group_tokens:
            last += 1
        longest = lengths[last - 1]
        columns = np.minimum(np.arange(longest), np.array(lengths[first:last])[:, None] - 1)
        groups.append(starts[first:last, None] + columns)
        for row in range(first, last):
            begin = offset + (row - first) * longest
            inverse[starts[row] : starts[row] + lengths[row]] = np.arange(begin, begin + lengths[row])
        offset += groups[-1].size
        first = last
    return groups, inverse


def flat_attention(
    _module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _attention_mask: None,
    *, scaling: float, flat_batch: FlatBatch, **_: object,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """query, key, value [1, heads, T, head_dim] -> [1, T, heads, head_dim]."""
    outputs = []
    for group in flat_batch.groups:
        q, k, v = (_gather(x, group) for x in (query, key, value))
        out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, flat_batch.inverse)[None], None


def _gather(x: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """[1, heads, T, head_dim] -> [examples, heads, longest, head_dim]."""
    rows = x[0].transpose(0, 1).index_select(0, group.reshape(-1))
    return rows.view(*group.shape, *rows.shape[1:]).transpose(1, 2)


class StackedExperts(Protocol):
    """What transformers' packed experts module offers."""

    num_experts: int
    gate_up_proj: torch.Tensor
    down_proj: torch.Tensor

    def _apply_gate(self, gate_up_out: torch.Tensor) -> torch.Tensor: ...


def flat_experts(
    module: StackedExperts, hidden_TD: torch.Tensor, topk_expert_ids_TK: torch.Tensor, topk_weights_TK: torch.Tensor
) -> torch.Tensor:
    """Tokens sorted by expert; weights unbound once, or the backward of each slice fills a whole stack."""
    num_topk = topk_expert_ids_TK.shape[-1]
    sorted_ids, order = torch.sort(topk_expert_ids_TK.reshape(-1), stable=True)
    counts = torch.bincount(sorted_ids, minlength=module.num_experts).tolist()
    chunks = torch.split(hidden_TD.index_select(0, order // num_topk), counts)
    outputs = [
        linear(module._apply_gate(linear(chunk, gate_up)), down)
        for chunk, gate_up, down in zip(chunks, module.gate_up_proj.unbind(), module.down_proj.unbind(), strict=True)
        if len(chunk)
    ]
    out = torch.cat(outputs) * topk_weights_TK.reshape(-1).index_select(0, order)[:, None]
    return torch.zeros_like(hidden_TD).index_add_(0, order // num_topk, out.to(hidden_TD.dtype))


ALL_ATTENTION_FUNCTIONS.register("flat", flat_attention)
ALL_EXPERTS_FUNCTIONS.register("flat", flat_experts)
