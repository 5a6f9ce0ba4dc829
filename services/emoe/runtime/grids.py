"""Residency nouns as messages: parsed once at a service's edge, refused there when malformed.

Every `parse_` raises InvalidRequestError; every grid has the shape [L, E] of the model's ExpertGrid.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from emoe.core.errors import InvalidRequestError
from emoe.core.experts import BoolGrid, CountGrid, ExpertGrid, ExpertId, FloatGrid, RoutingRule
from emoe.v1 import residency_pb2 as pb

MAX_GRID_CELLS = 1 << 22
_MAX_DIGEST_CHARACTERS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelId:
    """Names the weights: a digest over the checkpoint's headers, and the family that reads them."""

    digest: str
    family: str


def model_to_proto(model: ModelId) -> pb.ModelId:
    return pb.ModelId(digest=model.digest, family=model.family)


def parse_model(message: pb.ModelId) -> ModelId:
    if not 0 < len(message.digest) <= _MAX_DIGEST_CHARACTERS:
        raise InvalidRequestError("model.digest is missing or too long; send the digest that GetModel gives")
    return ModelId(digest=message.digest, family=message.family)


def grid_to_proto(grid: ExpertGrid) -> pb.ExpertGrid:
    return pb.ExpertGrid(
        num_layers=grid.num_layers,
        moe_layers=grid.moe_layers,
        rule=pb.RoutingRule(**dataclasses.asdict(grid.rule)),
        expert_bytes=grid.expert_bytes,
    )


def parse_grid(message: pb.ExpertGrid) -> ExpertGrid:
    rule = parse_rule(message.rule)
    if not 0 < message.num_layers * rule.num_experts <= MAX_GRID_CELLS:
        raise InvalidRequestError(
            f"a grid of {message.num_layers} x {rule.num_experts} must have 1 to {MAX_GRID_CELLS} cells"
        )
    layers = tuple(message.moe_layers)
    if not layers or list(layers) != sorted(set(layers)) or layers[-1] >= message.num_layers:
        raise InvalidRequestError(
            f"grid.moe_layers must be rising layer indices below {message.num_layers}, at least one"
        )
    return ExpertGrid(num_layers=message.num_layers, moe_layers=layers, rule=rule, expert_bytes=message.expert_bytes)


def parse_rule(message: pb.RoutingRule) -> RoutingRule:
    """Group fields that are 0 were not set and mean 1."""
    rule = RoutingRule(
        num_experts=message.num_experts,
        top_k=message.top_k,
        num_groups=message.num_groups or 1,
        topk_groups=message.topk_groups or 1,
        group_score_experts=message.group_score_experts or 1,
    )
    if not 0 < rule.top_k <= rule.num_experts:
        raise InvalidRequestError(f"rule.top_k must lie in 1..{rule.num_experts}, not {rule.top_k}")
    if rule.num_experts % rule.num_groups != 0 or rule.topk_groups > rule.num_groups:
        raise InvalidRequestError(
            f"{rule.num_experts} experts in {rule.num_groups} groups, {rule.topk_groups} of them chosen: not possible"
        )
    if rule.min_residents_per_group > rule.num_experts // rule.num_groups:
        raise InvalidRequestError(f"groups of {rule.num_experts // rule.num_groups} experts cannot give {rule.top_k}")
    return rule


def expert_to_proto(expert: ExpertId) -> pb.ExpertId:
    return pb.ExpertId(layer=expert.layer, index=expert.index)


def parse_expert(message: pb.ExpertId, grid: ExpertGrid) -> ExpertId:
    expert = ExpertId(message.layer, message.index)
    if not grid.contains(expert):
        raise InvalidRequestError(f"this model has no routed expert {expert.index} in layer {expert.layer}")
    return expert


def set_to_proto(experts: BoolGrid) -> pb.ExpertSet:
    return pb.ExpertSet(bits=np.packbits(experts, bitorder="little").tobytes())


def parse_set(message: pb.ExpertSet, grid: ExpertGrid) -> BoolGrid:
    """Bits beyond the grid and bits of dense layers must be 0."""
    num_cells = grid.shape[0] * grid.shape[1]
    if len(message.bits) != -(-num_cells // 8):
        raise InvalidRequestError(
            f"an expert set of {num_cells} bits takes {-(-num_cells // 8)} bytes, not {len(message.bits)}"
        )
    flat = np.unpackbits(np.frombuffer(message.bits, dtype=np.uint8), bitorder="little")
    experts = flat[:num_cells].astype(np.bool_).reshape(grid.shape)
    if flat[num_cells:].any() or (experts & ~grid.all_experts()).any():
        raise InvalidRequestError("an expert set names experts that this model does not have")
    return experts


def counts_to_proto(counts: CountGrid) -> pb.ExpertCounts:
    return pb.ExpertCounts(values=counts.reshape(-1).tolist())


def parse_counts(message: pb.ExpertCounts, grid: ExpertGrid) -> CountGrid:
    _check_cells(len(message.values), grid)
    return np.array(message.values, dtype=np.int64).reshape(grid.shape)


def demand_to_proto(demand: FloatGrid) -> pb.ExpertDemand:
    return pb.ExpertDemand(values=demand.reshape(-1).tolist())


def parse_demand(message: pb.ExpertDemand, grid: ExpertGrid) -> FloatGrid:
    _check_cells(len(message.values), grid)
    demand = np.array(message.values, dtype=np.float64).reshape(grid.shape)
    if not np.isfinite(demand).all() or (demand < 0).any():
        raise InvalidRequestError("expert demand must be finite and not negative")
    return demand


def _check_cells(num_values: int, grid: ExpertGrid) -> None:
    num_cells = grid.shape[0] * grid.shape[1]
    if num_values != num_cells:
        raise InvalidRequestError(
            f"a grid of {grid.shape[0]} x {grid.shape[1]} has {num_cells} values, not {num_values}"
        )
