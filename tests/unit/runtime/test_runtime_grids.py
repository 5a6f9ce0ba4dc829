"""Residency messages: what goes out comes back, and what is malformed is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emoe.core.errors import InvalidRequestError
from emoe.core.experts import ExpertGrid, ExpertId, RoutingRule
from emoe.runtime import grids
from emoe.v1 import residency_pb2 as pb

GRID = ExpertGrid(num_layers=3, moe_layers=(1, 2), rule=RoutingRule(num_experts=5, top_k=2), expert_bytes=1 << 40)


@st.composite
def expert_grids(draw: st.DrawFn) -> ExpertGrid:
    num_layers = draw(st.integers(1, 6))
    moe_layers = draw(st.sets(st.integers(0, num_layers - 1), min_size=1))
    num_groups, per_group = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    topk_groups = draw(st.integers(1, num_groups))
    rule = RoutingRule(
        num_experts=num_groups * per_group,
        top_k=draw(st.integers(1, topk_groups * per_group)),
        num_groups=num_groups,
        topk_groups=topk_groups,
        group_score_experts=draw(st.integers(1, per_group)),
    )
    return ExpertGrid(
        num_layers=num_layers, moe_layers=tuple(sorted(moe_layers)), rule=rule, expert_bytes=draw(st.integers(0, 2**63))
    )


@settings(deadline=None)
@given(expert_grids(), st.integers(0, 2**32))
def test_every_noun_survives_the_wire(grid: ExpertGrid, seed: int) -> None:
    draw = np.random.default_rng(seed)
    experts = grid.all_experts() & draw.integers(0, 2, grid.shape).astype(bool)
    counts = draw.integers(0, 2**32, grid.shape)
    demand = draw.random(grid.shape).astype(np.float32).astype(np.float64)

    assert grids.parse_grid(grids.grid_to_proto(grid)) == grid
    np.testing.assert_array_equal(grids.parse_set(grids.set_to_proto(experts), grid), experts)
    np.testing.assert_array_equal(grids.parse_counts(grids.counts_to_proto(counts), grid), counts)
    np.testing.assert_array_equal(grids.parse_demand(grids.demand_to_proto(demand), grid), demand)


def test_bits_are_row_major_with_the_least_significant_first() -> None:
    experts = np.zeros(GRID.shape, dtype=bool)
    experts[1, 0] = True

    assert grids.set_to_proto(experts).bits == bytes([1 << 5, 0])


@pytest.mark.parametrize(
    "bits",
    [
        pytest.param(b"", id="none"),
        pytest.param(b"\x20", id="too short"),
        pytest.param(b"\x20\x00\x00", id="too long"),
        pytest.param(b"\x00\x80", id="beyond the grid"),
        pytest.param(b"\x01\x00", id="in a dense layer"),
    ],
)
def test_malformed_expert_sets_are_refused(bits: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        grids.parse_set(pb.ExpertSet(bits=bits), GRID)


RULE = pb.RoutingRule(num_experts=4, top_k=2)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(pb.ExpertGrid(), id="empty"),
        pytest.param(pb.ExpertGrid(num_layers=2, moe_layers=[], rule=RULE), id="no layers"),
        pytest.param(pb.ExpertGrid(num_layers=2, moe_layers=[2], rule=RULE), id="layer out of range"),
        pytest.param(pb.ExpertGrid(num_layers=2, moe_layers=[1, 0], rule=RULE), id="falling layers"),
        pytest.param(pb.ExpertGrid(num_layers=2, moe_layers=[0, 0], rule=RULE), id="repeated layer"),
        pytest.param(pb.ExpertGrid(num_layers=2**32 - 1, moe_layers=[0], rule=RULE), id="too large"),
        pytest.param(
            pb.ExpertGrid(num_layers=1, moe_layers=[0], rule=pb.RoutingRule(num_experts=4, top_k=5)), id="top_k"
        ),
        pytest.param(
            pb.ExpertGrid(num_layers=1, moe_layers=[0], rule=pb.RoutingRule(num_experts=4, top_k=1, num_groups=3)),
            id="uneven groups",
        ),
    ],
)
def test_malformed_grids_are_refused(message: pb.ExpertGrid) -> None:
    with pytest.raises(InvalidRequestError):
        grids.parse_grid(message)


def test_expert_that_the_model_lacks_is_refused() -> None:
    assert grids.parse_expert(grids.expert_to_proto(ExpertId(1, 4)), GRID) == ExpertId(1, 4)
    with pytest.raises(InvalidRequestError, match="layer 0"):
        grids.parse_expert(pb.ExpertId(layer=0, index=1), GRID)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_demand_that_is_no_amount_is_refused(value: float) -> None:
    with pytest.raises(InvalidRequestError):
        grids.parse_demand(pb.ExpertDemand(values=[value] * 15), GRID)


def test_counts_of_another_grid_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="15 values, not 14"):
        grids.parse_counts(pb.ExpertCounts(values=[1] * 14), GRID)


def test_model_id_survives_the_wire_and_must_have_a_digest() -> None:
    model = grids.ModelId(digest="abc", family="olmoe")
    assert grids.parse_model(grids.model_to_proto(model)) == model
    with pytest.raises(InvalidRequestError):
        grids.parse_model(pb.ModelId(family="olmoe"))
