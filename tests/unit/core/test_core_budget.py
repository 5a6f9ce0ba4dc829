from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emoe.core.budget import SLOT_ALIGNMENT_BYTES, slot_bytes, split_budget
from emoe.core.errors import BudgetError
from emoe.core.experts import ExpertGrid, RoutingRule


def grid(*, expert_bytes: int = 1000, top_k: int = 2) -> ExpertGrid:
    rule = RoutingRule(num_experts=8, top_k=top_k)
    return ExpertGrid(num_layers=4, moe_layers=(1, 2, 3), rule=rule, expert_bytes=expert_bytes)


@given(budget_bytes=st.integers(0, 10**6), expert_bytes=st.integers(1, 5000), reroute=st.booleans())
def test_slots_never_take_more_than_the_budget_nor_more_than_there_are_experts(
    budget_bytes: int, expert_bytes: int, reroute: bool
) -> None:
    budget = split_budget(grid(expert_bytes=expert_bytes), budget_bytes=budget_bytes, reroute=reroute)
    assert budget.num_bytes <= budget_bytes
    assert budget.num_slots <= 24
    assert budget.slot_bytes % SLOT_ALIGNMENT_BYTES == 0
    assert budget.slot_bytes >= expert_bytes


def test_a_share_of_all_expert_bytes_buys_that_share_of_the_experts() -> None:
    total = 24 * slot_bytes(grid())
    assert split_budget(grid(), budget_bytes=total // 4, reroute=True).num_slots == 6


def test_no_slot_is_kept_for_staging_when_all_experts_fit_or_misses_wait() -> None:
    total = 24 * slot_bytes(grid())
    assert split_budget(grid(), budget_bytes=total, reroute=True).num_staging == 0
    assert split_budget(grid(), budget_bytes=total // 2, reroute=False).num_staging == 0
    assert split_budget(grid(), budget_bytes=total // 2, reroute=True).num_staging == 2


def test_too_small_a_budget_is_refused_with_the_bytes_that_would_do() -> None:
    stride = slot_bytes(grid())
    with pytest.raises(BudgetError, match=str(8 * stride)):
        split_budget(grid(), budget_bytes=7 * stride, reroute=True).check()
    split_budget(grid(), budget_bytes=8 * stride, reroute=True).check()
    split_budget(grid(), budget_bytes=2 * stride, reroute=False).check()


@given(
    budget_bytes=st.integers(0, 10**5),
    expert_bytes=st.integers(1, 5000),
    reserved_bytes=st.integers(0, 30_000),
    reroute=st.booleans(),
)
def test_what_is_reserved_and_the_slots_fit_the_budget_together_and_never_cost_a_worker_its_start(
    budget_bytes: int, expert_bytes: int, reserved_bytes: int, reroute: bool
) -> None:
    model = grid(expert_bytes=expert_bytes)
    without = split_budget(model, budget_bytes=budget_bytes, reroute=reroute)
    beside = split_budget(model, budget_bytes=budget_bytes, reroute=reroute, reserved_bytes=reserved_bytes)
    assert beside.num_bytes + beside.reserved_bytes <= budget_bytes
    assert beside.is_enough == without.is_enough
    if beside.reserved_bytes:
        assert reroute
        assert beside.reserved_bytes == reserved_bytes
        assert beside.num_slots == (budget_bytes - reserved_bytes) // beside.slot_bytes
    else:
        assert beside == without


def test_nothing_is_reserved_where_all_experts_fit() -> None:
    stride = slot_bytes(grid())
    assert split_budget(grid(), budget_bytes=24 * stride, reroute=True, reserved_bytes=1).reserved_bytes == 0
    assert split_budget(grid(), budget_bytes=24 * stride - 1, reroute=True, reserved_bytes=1).reserved_bytes == 1
