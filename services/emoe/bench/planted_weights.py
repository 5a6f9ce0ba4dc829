"""The tensors of a planted checkpoint, layer by layer, as both published namings want them.

Scales are sane: RMSNorms are ones, activations stay near one, each block adds `BLOCK_RMS` to the residual stream. A
router row is noise without any task's direction, plus the directions of the tasks that favour its expert.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from emoe.bench.planted import PlantedShape, favour, task_subsets

Tensors = dict[str, torch.Tensor]

TASK_COSINE = 0.7
"""Of an embedding with its task's direction; the rest is the token's own."""
BLOCK_RMS = 0.2
SILU_RMS = 0.6
"""Of silu(g) u with g and u standard normal: sqrt(E[silu(g)^2]) = 0.596."""
HEAD_FAVOUR = 4.0
"""By how many standard deviations the head favours the task's tokens: about the largest of 32,000 draws."""


class PlantedWeights:
    def __init__(self, shape: PlantedShape) -> None:
        self._shape = shape
        self._generator = torch.Generator().manual_seed(shape.seed)
        self._subsets = task_subsets(shape)
        self._favour = favour(shape)
        square = self._normal(shape.hidden_size, shape.num_tasks, rms=1.0)
        self._directions_TD = torch.linalg.qr(square.float())[0].T.contiguous()

    def base(self) -> Tensors:
        """What belongs to no layer."""
        shape, root = self._shape, math.sqrt(self._shape.hidden_size)
        tasks_V = torch.arange(shape.vocab_size) % shape.num_tasks
        own_VD = self._normal(shape.vocab_size, shape.hidden_size, rms=1.0).float()
        shared_VD = self._directions_TD[tasks_V] * root
        embedding_VD = TASK_COSINE * shared_VD + math.sqrt(1 - TASK_COSINE**2) * self._without_tasks(own_VD)
        head_VD = self._normal(shape.vocab_size, shape.hidden_size, rms=1.0).float() / root
        head_VD += HEAD_FAVOUR / (self._cosine(shape.num_layers) * root) * self._directions_TD[tasks_V]
        return {
            "model.embed_tokens.weight": embedding_VD.bfloat16(),
            "model.norm.weight": torch.ones(shape.hidden_size, dtype=torch.bfloat16),
            "lm_head.weight": head_VD.bfloat16(),
        }

    def layers(self) -> Iterator[Tensors]:
        for layer in range(self._shape.num_layers):
            stem = f"model.layers.{layer}"
            yield {f"{stem}.{name}": tensor for name, tensor in (self._attention() | self._experts(layer)).items()}

    def _attention(self) -> Tensors:
        shape, hidden = self._shape, self._shape.hidden_size
        queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        inward = 1 / math.sqrt(hidden)
        tensors = {
            "self_attn.q_proj.weight": self._normal(queries, hidden, rms=inward),
            "self_attn.k_proj.weight": self._normal(keys, hidden, rms=inward),
            "self_attn.v_proj.weight": self._normal(keys, hidden, rms=inward),
            "self_attn.o_proj.weight": self._normal(hidden, queries, rms=BLOCK_RMS / math.sqrt(queries)),
            "input_layernorm.weight": torch.ones(hidden, dtype=torch.bfloat16),
            "post_attention_layernorm.weight": torch.ones(hidden, dtype=torch.bfloat16),
        }
        if shape.family == "qwen3_moe":
            for name in ("q_norm", "k_norm"):
                tensors[f"self_attn.{name}.weight"] = torch.ones(shape.head_dim, dtype=torch.bfloat16)
        return tensors

    def _experts(self, layer: int) -> Tensors:
        shape, hidden, inner = self._shape, self._shape.hidden_size, self._shape.intermediate_size
        is_mixtral = shape.family == "mixtral"
        module, names = ("block_sparse_moe", ("w1", "w3", "w2")) if is_mixtral else ("mlp", QWEN_NAMES)
        # The sum of top_k outputs weighted about alike is smaller by the root of top_k.
        outward = BLOCK_RMS * math.sqrt(shape.top_k) / (SILU_RMS * math.sqrt(inner))
        tensors = {f"{module}.gate.weight": self._router(layer)}
        for expert in range(shape.num_experts):
            for name, rows, columns, rms in (
                (names[0], inner, hidden, 1 / math.sqrt(hidden)),
                (names[1], inner, hidden, 1 / math.sqrt(hidden)),
                (names[2], hidden, inner, outward),
            ):
                tensors[f"{module}.experts.{expert}.{name}.weight"] = self._normal(rows, columns, rms=rms)
        return tensors

    def _router(self, layer: int) -> torch.Tensor:
        shape, cosine, root = self._shape, self._cosine(layer + 0.5), math.sqrt(self._shape.hidden_size)
        own_ED = self._normal(shape.num_experts, shape.hidden_size, rms=1.0).float()
        router_ED = self._without_tasks(own_ED) / root
        # Of the noise only what lies outside the task's direction moves the logits.
        step = self._favour * math.sqrt(1 - cosine**2) / (cosine * root)
        for task, direction_D in enumerate(self._directions_TD):
            router_ED[torch.from_numpy(self._subsets[task, layer])] += step * direction_D
        return router_ED.bfloat16()

    def _cosine(self, num_blocks: float) -> float:
        """What is left of the task's share after so many layers, of which each adds two blocks' worth."""
        return TASK_COSINE / math.sqrt(1 + 2 * num_blocks * BLOCK_RMS**2)

    def _without_tasks(self, rows_ND: torch.Tensor) -> torch.Tensor:
        along_NT = rows_ND @ self._directions_TD.T
        return rows_ND.addmm(along_NT, self._directions_TD, alpha=-1)

    def _normal(self, rows: int, columns: int, *, rms: float) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=self._generator) * rms).bfloat16()


QWEN_NAMES = ("gate_proj", "up_proj", "down_proj")
