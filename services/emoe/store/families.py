"""Which model families emoe serves, how each describes its experts in config.json, and who is refused and why.

The one place to change for a new family whose keys `names` understands. Knows no files and no tensors; how a family
computes is the worker's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from emoe.core.errors import UnsupportedModelError
from emoe.core.experts import RoutingRule
from emoe.store.config import Config
from emoe.store.quantisation import Quantisation
from emoe.store.quantisation_config import parse_quantisation

_Layers = Callable[[Config, int], tuple[int, ...]]
_Groups = Callable[[Config], tuple[int, int, int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What config.json says about the experts; the keys must agree. `transposed`: stored as [in, out] (gpt-oss).

    `dtype` is what a quantised model computes in; None where the weights say it themselves.
    """

    family: str
    num_layers: int
    moe_layers: tuple[int, ...]
    hidden_size: int
    intermediate_size: int
    rule: RoutingRule
    has_biases: bool
    transposed: bool
    quantisation: Quantisation | None = None
    dtype: str | None = None


def parse_shape(config: Config) -> ModelShape:
    """UnsupportedModelError for a model that emoe cannot serve, CheckpointError for a config.json that is not whole."""
    name = config.text("model_type")
    _check_supported(name, config.values)
    family = SUPPORTED[name]
    num_layers = config.count("num_hidden_layers")
    quantisation = parse_quantisation(config.values.get("quantization_config"), family=name)
    return ModelShape(
        family=name,
        num_layers=num_layers,
        moe_layers=family.moe_layers(config, num_layers),
        hidden_size=config.count("hidden_size"),
        intermediate_size=config.count(family.intermediate_key),
        rule=_routing_rule(config, family.groups),
        has_biases=family.has_biases,
        transposed=family.transposed,
        quantisation=quantisation,
        dtype=_computing_dtype(config) if quantisation else None,
    )


_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def _computing_dtype(config: Config) -> str:
    """bfloat16 unless config.json says otherwise, as every quantised MoE model is published."""
    named = config.values.get("dtype") or config.values.get("torch_dtype") or "bfloat16"
    if not isinstance(named, str) or named not in _DTYPES:
        raise config.error("dtype", f"one of {', '.join(_DTYPES)}", named)
    return _DTYPES[named]


def _every_layer(config: Config, num_layers: int) -> tuple[int, ...]:  # noqa: ARG001 - one signature for all
    return tuple(range(num_layers))


def _sparse_steps(config: Config, num_layers: int) -> tuple[int, ...]:
    step, dense = config.count("decoder_sparse_step", default=1), config.counts("mlp_only_layers")
    return tuple(layer for layer in range(num_layers) if layer not in dense and (layer + 1) % step == 0)


def _after_dense(default: int) -> _Layers:
    def layers(config: Config, num_layers: int) -> tuple[int, ...]:
        return tuple(range(config.count("first_k_dense_replace", default=default, minimum=0), num_layers))

    return layers


def _no_groups(config: Config) -> tuple[int, int, int]:  # noqa: ARG001 - one signature for all
    return 1, 1, 1


def _deepseek_v2_groups(config: Config) -> tuple[int, int, int]:
    method = config.values.get("topk_method", "greedy")
    if method == "greedy":
        return 1, 1, 1
    if method != "group_limited_greedy":
        raise UnsupportedModelError(
            f"{config.path}: topk_method {method!r} is not supported; deepseek_v2 has greedy and group_limited_greedy"
        )
    return config.count("n_group"), config.count("topk_group"), 1


def _deepseek_v3_groups(config: Config) -> tuple[int, int, int]:
    return config.count("n_group", default=8), config.count("topk_group", default=4), 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Family:
    intermediate_key: str = "moe_intermediate_size"
    moe_layers: _Layers = _every_layer
    groups: _Groups = _no_groups
    has_biases: bool = False
    transposed: bool = False


SUPPORTED: Mapping[str, _Family] = {
    "mixtral": _Family(intermediate_key="intermediate_size"),
    "olmoe": _Family(intermediate_key="intermediate_size"),
    "qwen2_moe": _Family(moe_layers=_sparse_steps),
    "qwen3_moe": _Family(moe_layers=_sparse_steps),
    "deepseek_v2": _Family(moe_layers=_after_dense(0), groups=_deepseek_v2_groups),
    "deepseek_v3": _Family(moe_layers=_after_dense(3), groups=_deepseek_v3_groups),
    "gpt_oss": _Family(intermediate_key="intermediate_size", has_biases=True, transposed=True),
}

_LINEAR_ATTENTION = "its linear attention layers need a state cache, which emoe does not have"
_SHORT_CONVOLUTION = "its convolution layers need a state cache, which emoe does not have"

REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "bailing_hybrid",
            "bamba",
            "falcon_h1",
            "falcon_mamba",
            "granitemoehybrid",
            "jamba",
            "kimi_linear",
            "mamba",
            "mamba2",
            "minimax",
            "nemotron_h",
            "olmo_hybrid",
            "qwen3_5",
            "qwen3_5_moe",
            "qwen3_5_moe_text",
            "qwen3_next",
            "qwen4_exp",
            "zamba",
            "zamba2",
        ),
        _LINEAR_ATTENTION,
    ),
    **dict.fromkeys(("lfm2", "lfm2_moe", "zaya"), _SHORT_CONVOLUTION),
}
"""Families refused for a reason of their own; any other that is not SUPPORTED is refused as such."""

_PAGED_ATTENTION = frozenset({"full_attention", "sliding_attention"})
_NESTED_KEYS = ("text_config", "llm_config", "language_config", "thinker_config")


def _check_supported(name: str, values: Mapping[str, object]) -> None:
    reason = REFUSED.get(name) or _nesting(values)
    if reason is None and name not in SUPPORTED:
        reason = (
            "this family is not supported" if _names_experts(values) else "a dense model: it has no experts to page"
        )
    reason = reason or _attention(values)
    if reason is not None:
        raise UnsupportedModelError(f"model_type {name}: {reason}; supported are {', '.join(sorted(SUPPORTED))}")


def _nesting(values: Mapping[str, object]) -> str | None:
    nested = next((key for key in _NESTED_KEYS if isinstance(values.get(key), dict)), None)
    return nested and f"a multimodal model (its config.json nests the language model in {nested}) is not supported"


def _attention(values: Mapping[str, object]) -> str | None:
    kinds = values.get("layer_types")
    others = [kind for kind in kinds if kind not in _PAGED_ATTENTION] if isinstance(kinds, list) else []
    if not others:
        return None
    if "linear_attention" in others:
        return _LINEAR_ATTENTION
    return f"layers of type {others[0]!r} are not supported, only full and sliding attention are"


def _names_experts(value: object) -> bool:
    """Whether a config, or one nested in it, counts more than one expert."""
    if not isinstance(value, dict):
        return False
    return any(
        ("expert" in key and type(item) is int and item > 1) or _names_experts(item) for key, item in value.items()
    )


def _routing_rule(config: Config, groups: _Groups) -> RoutingRule:
    """Grouping that shuts out no expert (one group, or all groups eligible) is none: plans have more freedom then."""
    num_experts = config.count("num_local_experts", "num_experts", "n_routed_experts")
    top_k = config.count("num_experts_per_tok")
    num_groups, topk_groups, group_score_experts = groups(config)
    if top_k > num_experts:
        raise config.error("num_experts_per_tok", f"at most the {num_experts} experts", top_k)
    if num_experts % num_groups:
        raise config.error("n_group", f"a divisor of the {num_experts} experts", num_groups)
    if topk_groups >= num_groups:
        return RoutingRule(num_experts=num_experts, top_k=top_k)
    rule = RoutingRule(
        num_experts=num_experts,
        top_k=top_k,
        num_groups=num_groups,
        topk_groups=topk_groups,
        group_score_experts=group_score_experts,
    )
    if rule.min_residents_per_group > num_experts // num_groups:
        raise config.error("topk_group", f"enough groups to hold {top_k} experts", topk_groups)
    return rule
