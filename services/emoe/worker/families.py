"""What transformers does not say of a model family: how its router would choose had the absent experts not existed.

Each adapter takes the router module and its logits [T, E] and gives weights [T, K] and expert ids [T, K], as the
family's own forward would with every absent expert at minus infinity in each selection, group selection too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from emoe.core.errors import UnsupportedModelError

Choice = tuple[torch.Tensor, torch.Tensor]
Reroute = Callable[[Any, torch.Tensor, torch.Tensor], Choice]
"""(router, logits_TE, resident_E) -> (weights_TK, ids_TK)"""

NEVER = float("-inf")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """`key_renames`: (published, transformers' own) fragments of the names of tensors outside the experts."""

    router_class: str
    reroute: Reroute
    key_renames: tuple[tuple[str, str], ...] = ()


def _softmax_then_topk(router: Any, logits_TE: torch.Tensor, resident_E: torch.Tensor) -> Choice:
    """Mixtral, OLMoE, Qwen2-MoE, Qwen3-MoE: softmax over the residents, the K best, normalised if the family does."""
    probs_TE = logits_TE.float().masked_fill(~resident_E, NEVER).softmax(-1)
    # A resident's probability may round to the 0 that absent experts have: these must still lose.
    weights_TK, ids_TK = probs_TE.masked_fill(~resident_E, NEVER).topk(router.top_k, dim=-1)
    if getattr(router, "norm_topk_prob", True):
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
    return weights_TK.to(logits_TE.dtype), ids_TK


def _mixtral(router: Any, logits_TE: torch.Tensor, resident_E: torch.Tensor) -> Choice:
    """As above, but weights stay float32."""
    weights_TK, ids_TK = _softmax_then_topk(router, logits_TE.float(), resident_E)
    return weights_TK, ids_TK


def _topk_then_softmax(router: Any, logits_TE: torch.Tensor, resident_E: torch.Tensor) -> Choice:
    """gpt-oss: the K best logits, softmax over these."""
    best_TK, ids_TK = logits_TE.masked_fill(~resident_E, NEVER).topk(router.top_k, dim=-1)
    return best_TK.softmax(-1, dtype=best_TK.dtype), ids_TK


def _deepseek_v2(router: Any, logits_TE: torch.Tensor, resident_E: torch.Tensor) -> Choice:
    """Softmax over the residents; group-limited: the groups with the best expert first (arXiv 2405.04434, 2.2.2)."""
    scores_TE = logits_TE.masked_fill(~resident_E, NEVER).softmax(-1, dtype=torch.float32)
    choice_TE = scores_TE.masked_fill(~resident_E, NEVER)
    if router.topk_method == "group_limited_greedy":
        best_TG = choice_TE.unflatten(-1, (router.num_group, -1)).amax(-1)
        choice_TE = _keep_groups(choice_TE, best_TG, router.topk_group)
    ids_TK = choice_TE.topk(router.top_k, dim=-1, sorted=False).indices
    return scores_TE.gather(1, ids_TK) * router.routed_scaling_factor, ids_TK


def _deepseek_v3(router: Any, logits_TE: torch.Tensor, resident_E: torch.Tensor) -> Choice:
    """Sigmoid scores, corrected by a bias for choice alone; groups by their two best (arXiv 2412.19437, 2.1.2)."""
    scores_TE = logits_TE.sigmoid()
    choice_TE = (scores_TE + router.e_score_correction_bias).masked_fill(~resident_E, NEVER)
    best_TG = choice_TE.unflatten(-1, (router.num_group, -1)).topk(2, dim=-1).values.sum(-1)
    choice_TE = _keep_groups(choice_TE, best_TG, router.topk_group)
    ids_TK = choice_TE.topk(router.top_k, dim=-1, sorted=False).indices
    weights_TK = scores_TE.gather(1, ids_TK)
    if router.norm_topk_prob:
        weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
    return weights_TK * router.routed_scaling_factor, ids_TK


def _keep_groups(choice_TE: torch.Tensor, group_scores_TG: torch.Tensor, num_kept: int) -> torch.Tensor:
    kept_TG = torch.zeros_like(group_scores_TG, dtype=torch.bool)
    kept_TG.scatter_(1, group_scores_TG.topk(num_kept, dim=-1, sorted=False).indices, True)
    return choice_TE.masked_fill(~kept_TG.repeat_interleave(choice_TE.shape[1] // kept_TG.shape[1], dim=1), NEVER)


FAMILIES: dict[str, Family] = {
    "mixtral": Family(
        router_class="MixtralTopKRouter", reroute=_mixtral, key_renames=((".block_sparse_moe.", ".mlp."),)
    ),
    "olmoe": Family(router_class="OlmoeTopKRouter", reroute=_softmax_then_topk),
    "qwen2_moe": Family(router_class="Qwen2MoeTopKRouter", reroute=_softmax_then_topk),
    "qwen3_moe": Family(router_class="Qwen3MoeTopKRouter", reroute=_softmax_then_topk),
    "deepseek_v2": Family(router_class="DeepseekV2TopkRouter", reroute=_deepseek_v2),
    "deepseek_v3": Family(router_class="DeepseekV3TopkRouter", reroute=_deepseek_v3),
    "gpt_oss": Family(router_class="GptOssTopKRouter", reroute=_topk_then_softmax),
}


def family_of(name: str) -> Family:
    if name not in FAMILIES:
        raise UnsupportedModelError(f"model family {name!r} has no adapter; there are {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]
