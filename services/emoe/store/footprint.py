"""What a model takes: the arithmetic behind `emoe inspect` and `emoe plan`.

Pure: looks at an open store's index, reads no weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from emoe.core.capacity import ModelGeometry
from emoe.store.linears import held_base_bytes
from emoe.store.store import ExpertStore
from emoe.store.tensors import DTYPE_BITS


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFootprint:
    family: str
    dtype: str
    """What the model computes in, and keeps keys and values in."""
    expert_format: str
    """As the experts are published, and held in slots: the dtype, or the name of a quantisation."""
    num_layers: int
    moe_layers: tuple[int, ...]
    num_experts: int
    """In each MoE layer."""
    top_k: int
    expert_bytes: int
    """Of one expert: the size of a slot."""
    base_bytes: int
    """Of everything but routed experts, as it is held in memory: a quantised linear in the model's dtype."""

    @property
    def num_experts_total(self) -> int:
        return len(self.moe_layers) * self.num_experts

    @property
    def all_expert_bytes(self) -> int:
        return self.num_experts_total * self.expert_bytes

    @property
    def total_bytes(self) -> int:
        return self.all_expert_bytes + self.base_bytes

    @property
    def expert_share_ratio(self) -> float:
        """Experts' part of all bytes, 0 to 1."""
        return self.all_expert_bytes / self.total_bytes


def measure(store: ExpertStore) -> ModelFootprint:
    grid = store.grid
    return ModelFootprint(
        family=store.family,
        dtype=store.dtype,
        expert_format=store.quantisation.label if store.quantisation else store.dtype,
        num_layers=grid.num_layers,
        moe_layers=grid.moe_layers,
        num_experts=grid.rule.num_experts,
        top_k=grid.rule.top_k,
        expert_bytes=grid.expert_bytes,
        base_bytes=held_base_bytes(store.base_tensors, store.base_linears, dtype_bits=DTYPE_BITS[store.dtype]),
    )


def geometry_of(store: ExpertStore, *, calibration_bytes: int = 0) -> ModelGeometry:
    """All that a worker's memory is planned from; 0 where the configuration does not say."""
    longest = store.config.get("max_position_embeddings")
    return ModelGeometry(
        grid=store.grid,
        base_bytes=measure(store).base_bytes,
        kv_bytes_per_token=kv_bytes_per_token(store.config, bits=DTYPE_BITS[store.dtype]) or 0,
        max_context=longest if type(longest) is int and longest > 0 else 0,
        calibration_bytes=calibration_bytes,
    )


def kv_bytes_per_token(config: Mapping[str, object], *, bits: int) -> int | None:
    """Keys and values that one token leaves in all layers, as the worker keeps them; None if the config does not say.

    Latent attention (DeepSeek) is kept unfolded: one key and one value a head.
    """
    num_layers, num_heads = _count(config, "num_hidden_layers"), _count(config, "num_attention_heads")
    if not num_layers or not num_heads:
        return None
    rope, nope, value = (_count(config, key) for key in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"))
    if rope and nope and value:
        per_layer = num_heads * (rope + nope + value)
    else:
        hidden = _count(config, "hidden_size")
        head_dim = _count(config, "head_dim") or (hidden // num_heads if hidden else None)
        if not head_dim:
            return None
        per_layer = 2 * (_count(config, "num_key_value_heads") or num_heads) * head_dim
    return num_layers * per_layer * bits // 8


def _count(config: Mapping[str, object], key: str) -> int | None:
    value = config.get(key)
    return value if type(value) is int and value > 0 else None
