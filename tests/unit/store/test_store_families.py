from __future__ import annotations

from pathlib import Path

import pytest
import store_samples

from emoe.core.errors import CheckpointError, UnsupportedModelError
from emoe.core.experts import RoutingRule
from emoe.store.config import Config
from emoe.store.families import ModelShape, parse_shape


def shape(**changes: object) -> ModelShape:
    return parse_shape(Config(path=Path("config.json"), values=store_samples.config(**changes)))


def deepseek(name: str, **changes: object) -> ModelShape:
    values: dict[str, object] = {
        "num_local_experts": None,
        "n_routed_experts": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 12,
        "first_k_dense_replace": 1,
    }
    return shape(model_type=name, **(values | changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"model_type": "qwen3_next"}, "qwen3_next: its linear attention .* state cache", id="qwen3_next"),
        pytest.param({"model_type": "jamba"}, "jamba: its linear attention layers need a state cache", id="jamba"),
        pytest.param(
            {"model_type": "qwen3_moe", "layer_types": ["full_attention", "linear_attention"]},
            "qwen3_moe: its linear attention",
            id="by layer type",
        ),
        pytest.param({"layer_types": ["chunked_attention"]}, "'chunked_attention' are not supported", id="chunked"),
        pytest.param(
            {"model_type": "dots1"}, "dots1: this family is not supported; supported are .*olmoe", id="other MoE"
        ),
        pytest.param(
            {"model_type": "dbrx", "num_local_experts": None, "ffn_config": {"moe_num_experts": 16}},
            "dbrx: this family is not supported",
            id="experts counted deeper",
        ),
        pytest.param(
            {"model_type": "llama", "num_local_experts": None, "num_experts_per_tok": None},
            "llama: a dense model",
            id="dense",
        ),
        pytest.param({"quantization_config": {"bits": 4}}, r"\(unnamed\)", id="unnamed quantisation"),
        pytest.param(
            {"model_type": "llama4", "text_config": {"num_local_experts": 16}}, "nests .* in text_config", id="nested"
        ),
    ],
)
def test_what_cannot_be_served_is_refused_by_name_with_the_reason(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        shape(**changes)


def test_a_routing_method_that_is_unknown_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="topk_method 'noaux_tc' is not supported"):
        deepseek("deepseek_v2", topk_method="noaux_tc")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        pytest.param({"model_type": None}, "model_type", id="no family"),
        pytest.param({"model_type": 5}, "model_type", id="family is a number"),
        pytest.param({"num_hidden_layers": None}, "num_hidden_layers", id="no layers"),
        pytest.param({"num_hidden_layers": 10**12}, "num_hidden_layers", id="absurd layers"),
        pytest.param({"num_local_experts": "8"}, "num_local_experts", id="text for a number"),
        pytest.param({"num_local_experts": True}, "num_local_experts", id="true for a number"),
        pytest.param({"num_local_experts": None}, "num_local_experts or num_experts or n_routed", id="no experts"),
        pytest.param({"num_experts_per_tok": 5}, "num_experts_per_tok .*at most the 4", id="top-k above experts"),
        pytest.param({"model_type": "qwen2_moe", "mlp_only_layers": 3}, "moe_intermediate|mlp_only", id="no list"),
    ],
)
def test_a_config_that_is_not_whole_names_the_field(changes: dict[str, object], key: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {key}"):
        shape(**changes)


@pytest.mark.parametrize("name", ["num_local_experts", "num_experts", "n_routed_experts"])
def test_the_number_of_experts_is_read_under_any_familys_name(name: str) -> None:
    assert shape(**({"num_local_experts": None} | {name: 4})).rule == RoutingRule(num_experts=4, top_k=2)


def test_layers_that_are_dense_by_the_config_have_no_experts() -> None:
    sparse = {"model_type": "qwen3_moe", "moe_intermediate_size": 12, "num_hidden_layers": 6}
    assert shape(**sparse).moe_layers == (0, 1, 2, 3, 4, 5)
    assert shape(**sparse, mlp_only_layers=[1], decoder_sparse_step=2).moe_layers == (3, 5)
    assert deepseek("deepseek_v2", num_hidden_layers=4).moe_layers == (1, 2, 3)


def test_deepseek_v2_routes_in_groups_only_when_told_so() -> None:
    plain = RoutingRule(num_experts=16, top_k=4)
    assert deepseek("deepseek_v2", n_group=4, topk_group=2).rule == plain
    assert deepseek("deepseek_v2", topk_method="greedy", n_group=4, topk_group=2).rule == plain
    grouped = deepseek("deepseek_v2", topk_method="group_limited_greedy", n_group=4, topk_group=2).rule
    assert grouped == RoutingRule(num_experts=16, top_k=4, num_groups=4, topk_groups=2, group_score_experts=1)


def test_deepseek_v3_scores_a_group_by_its_two_best() -> None:
    rule = deepseek("deepseek_v3", n_group=4, topk_group=2).rule
    assert rule == RoutingRule(num_experts=16, top_k=4, num_groups=4, topk_groups=2, group_score_experts=2)


@pytest.mark.parametrize(("num_groups", "topk_groups"), [(1, 1), (4, 4)], ids=["one group", "every group"])
def test_groups_that_shut_nothing_out_are_no_groups(num_groups: int, topk_groups: int) -> None:
    rule = deepseek("deepseek_v3", n_group=num_groups, topk_group=topk_groups).rule
    assert rule == RoutingRule(num_experts=16, top_k=4)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        pytest.param({"n_group": 3, "topk_group": 1}, "n_group", id="groups of unequal size"),
        pytest.param({"n_group": 8, "topk_group": 1}, "topk_group", id="too few experts in the groups"),
    ],
)
def test_groups_that_cannot_work_are_an_error(changes: dict[str, object], key: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {key} must be"):
        deepseek("deepseek_v3", **changes)
