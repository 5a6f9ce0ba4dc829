"""Attention over a step's batch, registered with transformers under the name `emoe`.

Each sequence sees its own KV row: prompts one by one, decodes together over the rows they fill. Sliding windows and
attention sinks (gpt-oss) are honoured; grouped keys are never repeated in memory while decoding.
"""

from __future__ import annotations

import dataclasses

import torch
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from emoe.worker.batch import AttendedBatch
from emoe.worker.kv import KvCache

NAME = "emoe"


@dataclasses.dataclass(frozen=True)
class AttentionStep:
    """Travels through the model's forward as the keyword argument `emoe_step`."""

    batch: AttendedBatch
    kv: KvCache


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - transformers passes None for this implementation
    *,
    scaling: float,
    emoe_step: AttentionStep,
    s_aux: torch.Tensor | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """query [1, heads, T, head_dim], key and value [1, kv heads, T, head_dim] -> [1, T, heads, value dim]."""
    batch, window = emoe_step.batch, options.get("sliding_window", getattr(module, "sliding_window", None))
    assert window is None or isinstance(window, int)
    keys, values = emoe_step.kv.blocks(int(module.layer_idx), key, value)  # type: ignore[arg-type]
    out = query.new_empty(1, batch.num_tokens, query.shape[1], value.shape[3])
    if batch.num_decodes:
        count = batch.num_decodes
        keys[batch.decode_rows_N, :, batch.decode_past_N] = key[0, :, :count].transpose(0, 1)
        values[batch.decode_rows_N, :, batch.decode_past_N] = value[0, :, :count].transpose(0, 1)
        out[0, :count] = _decode(query[0, :, :count], keys, values, batch, window, scaling, s_aux)
    for chunk in batch.prefills:
        span, end = slice(chunk.start, chunk.stop), chunk.num_past + chunk.stop - chunk.start
        keys[chunk.row, :, chunk.num_past : end] = key[0, :, span]
        values[chunk.row, :, chunk.num_past : end] = value[0, :, span]
        row = slice(chunk.row, chunk.row + 1)
        attended = attend_causally(
            query[:, :, span],
            keys[row, :, :end],
            values[row, :, :end],
            num_past=chunk.num_past,
            window=window,
            scaling=scaling,
            sinks=s_aux,
        )
        out[0, span] = attended[0].transpose(0, 1)
    return out, None


def _decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    batch: AttendedBatch,
    window: int | None,
    scaling: float,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """query [heads, N, head_dim] -> [N, heads, value dim]."""
    grouped = query.transpose(0, 1).unflatten(1, (keys.shape[1], -1))  # [N, kv heads, queries a kv head, head_dim]
    if (length := batch.shared_keys) is not None:
        rows = slice(batch.num_decodes)
        out = _softmax_attention(
            grouped, keys[rows, :, :length], values[rows, :, :length], batch.decode_mask(window), scaling, sinks
        )
        return out.flatten(1, 2)
    outs = []
    for position, (row, past) in enumerate(batch.lone_decodes):
        first = 0 if window is None else max(0, past + 1 - window)
        seen = (slice(row, row + 1), slice(None), slice(first, past + 1))
        outs.append(
            _softmax_attention(grouped[position : position + 1], keys[seen], values[seen], None, scaling, sinks)
        )
    return torch.cat(outs).flatten(1, 2)


def attend_causally(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    num_past: int,
    window: int | None,
    scaling: float,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """query [N, heads, n, head_dim] over keys [N, kv heads, past + n, head_dim] -> [N, heads, n, value dim]."""
    num_keys = keys.shape[2]
    if sinks is None and num_past == 0 and (window is None or num_keys <= window):
        return F.scaled_dot_product_attention(query, keys, values, is_causal=True, scale=scaling, enable_gqa=True)
    places = torch.arange(num_keys, device=query.device)
    queries = places[num_past:, None]
    seen = places <= queries
    if window is not None:
        seen &= places > queries - window
    if sinks is None:
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=seen, scale=scaling, enable_gqa=True)
    groups = query.unflatten(1, (keys.shape[1], -1)).flatten(2, 3)  # [1, kv heads, queries a kv head * n, head_dim]
    repeats = query.shape[1] // keys.shape[1]
    out: torch.Tensor = _softmax_attention(groups, keys, values, seen.repeat(repeats, 1), scaling, sinks)
    ungrouped: torch.Tensor = out.unflatten(2, (repeats, -1)).flatten(1, 2)
    return ungrouped


def _softmax_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    seen: torch.Tensor | None,
    scaling: float,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """query [N, kv heads, Q, head_dim]; `sinks` [heads] join the softmax's denominator alone (gpt-oss)."""
    if sinks is None:
        if seen is not None and seen.dim() == 4:
            seen = seen.expand(-1, -1, query.shape[2], -1)
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=seen, scale=scaling)
    logits = query @ keys.transpose(2, 3) * scaling
    if seen is not None:
        logits = logits.masked_fill(~seen, float("-inf"))
    per_head = sinks.to(logits.dtype).view(1, keys.shape[1], -1, 1)
    per_query = per_head.repeat_interleave(query.shape[2] // per_head.shape[2], dim=2).expand(
        query.shape[0], -1, -1, -1
    )
    weights = torch.cat([logits, per_query], dim=-1)
    weights = (weights - weights.amax(-1, keepdim=True)).softmax(-1)[..., :-1]
    return weights.to(values.dtype) @ values


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
