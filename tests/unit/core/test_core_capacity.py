from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emoe.core.budget import slot_bytes, split_budget
from emoe.core.capacity import (
    PROCESS_BYTES,
    WORK_SPACE_BYTES,
    ModelGeometry,
    WorkerPlan,
    WorkerWishes,
    as_quantity,
    plan_worker,
)
from emoe.core.errors import BudgetError
from emoe.core.experts import ExpertGrid, ExpertId, RoutingRule
from emoe.core.memory import ExpertMemory, parse_expert_memory, parse_memory
from emoe.core.quantity import whole_bytes

MIB = 2**20
OLMOE = ModelGeometry(
    grid=ExpertGrid(
        num_layers=16,
        moe_layers=tuple(range(16)),
        rule=RoutingRule(num_experts=64, top_k=8),
        expert_bytes=3 * 2048 * 1024 * 2,
    ),
    base_bytes=954_000_000,
    kv_bytes_per_token=16 * 2 * 2048 * 2,
    max_context=4096,
)


def wishes(memory: str = "25%", **fields: object) -> WorkerWishes:
    return dataclasses.replace(WorkerWishes(memory=parse_expert_memory(memory)), **fields)  # type: ignore[arg-type]


def plan(memory: str = "25%", **fields: object) -> WorkerPlan:
    return plan_worker(OLMOE, wishes(memory, **fields))


QUARTER = parse_expert_memory("25%")
geometries = st.builds(
    lambda layers, dense, experts, top_k, expert_bytes, base, kv, calibration: ModelGeometry(
        grid=ExpertGrid(
            num_layers=layers + dense,
            moe_layers=tuple(range(dense, dense + layers)),
            rule=RoutingRule(num_experts=experts, top_k=min(top_k, experts)),
            expert_bytes=expert_bytes,
        ),
        base_bytes=base,
        kv_bytes_per_token=kv,
        max_context=2048,
        calibration_bytes=calibration,
    ),
    *(st.integers(1, 64), st.integers(0, 3), st.integers(2, 256), st.integers(1, 16)),
    *(st.integers(1000, 2**30), st.integers(0, 2**36), st.integers(0, 2**20), st.integers(0, 2**32)),
)
policies = st.sampled_from(["reroute", "load"])
devices = st.sampled_from(["cpu", "gpu"])
memories = st.builds(lambda percent: f"{percent}%", st.integers(1, 100)) | st.integers(2**16, 2**40).map(str)


def test_a_quarter_of_a_models_experts_is_a_quarter_of_its_slots() -> None:
    got = plan("25%")
    assert (got.slots, got.staging, got.total_experts) == (256, 2, 1024)
    assert got.resident_bytes == 256 * got.slot_bytes
    assert got.expert_bytes == 1024 * OLMOE.grid.expert_bytes
    assert got.fits


def test_kv_is_a_row_of_the_whole_context_for_each_request() -> None:
    assert plan(max_context=1024, max_concurrency=4).kv_bytes == 4 * 1024 * OLMOE.kv_bytes_per_token


def test_a_context_is_cut_to_what_the_model_was_made_for() -> None:
    assert plan(max_context=100_000).kv_bytes == plan(max_context=4096).kv_bytes


def test_the_smallest_budget_is_every_layers_top_k_and_staging_when_rerouting() -> None:
    assert plan().min_bytes == (16 * 8 + 2) * plan().slot_bytes


def test_the_smallest_budget_is_one_layers_top_k_when_loading() -> None:
    assert plan(miss_policy="load").min_bytes == 8 * plan().slot_bytes


@given(geometry=geometries, memory=memories, policy=policies, device=devices)
def test_the_smallest_budget_fits_and_a_byte_less_does_not(
    geometry: ModelGeometry, memory: str, policy: str, device: str
) -> None:
    asked = dataclasses.replace(wishes(memory), miss_policy=policy, device=device)
    least = plan_worker(geometry, asked).min_bytes
    assert plan_worker(geometry, dataclasses.replace(asked, memory=ExpertMemory(num_bytes=least))).fits
    short = plan_worker(geometry, dataclasses.replace(asked, memory=ExpertMemory(num_bytes=least - 1)))
    with pytest.raises(BudgetError, match="needs at least"):
        short.check()


@given(geometry=geometries, memory=memories, policy=policies)
def test_a_refused_budget_is_refused_with_a_figure_that_does(geometry: ModelGeometry, memory: str, policy: str) -> None:
    asked = dataclasses.replace(wishes(memory), miss_policy=policy)
    got = plan_worker(geometry, asked)
    if got.fits:
        return
    figure = got.problems[0].rsplit("raise it to ", 1)[1].split()[0]
    raised = dataclasses.replace(asked, memory=ExpertMemory(num_bytes=whole_bytes(figure)))
    assert plan_worker(geometry, raised).fits


@given(geometry=geometries, memory=memories, policy=policies)
def test_the_worker_cuts_the_planned_slots_from_the_planned_bytes(
    geometry: ModelGeometry, memory: str, policy: str
) -> None:
    got = plan_worker(geometry, dataclasses.replace(wishes(memory), miss_policy=policy))
    if got.resident_bytes == 0:
        return
    given_bytes = parse_memory(str(got.resident_bytes), total_bytes=geometry.grid.num_experts_total * got.slot_bytes)
    split = split_budget(
        geometry.grid,
        budget_bytes=given_bytes,
        reroute=policy == "reroute",
        reserved_bytes=geometry.calibration_bytes,
    )
    assert (split.num_slots, split.num_staging) == (got.slots, got.staging)
    assert split.reserved_bytes == got.calibration_bytes


def test_pinned_experts_fit_beside_a_calibration_from_the_smallest_budget_on() -> None:
    calibrated = dataclasses.replace(OLMOE, calibration_bytes=3 * slot_bytes(OLMOE.grid) + 1)
    asked = wishes("1%", pinned=tuple(ExpertId(0, index) for index in range(20)))
    least = plan_worker(calibrated, asked).min_bytes
    for num_bytes in (least, least + slot_bytes(OLMOE.grid)):
        got = plan_worker(calibrated, dataclasses.replace(asked, memory=ExpertMemory(num_bytes=num_bytes)))
        assert got.fits
        assert got.calibration_bytes == calibrated.calibration_bytes


@given(geometry=geometries, memory=memories, device=devices)
def test_worker_memory_is_the_sum_of_its_parts_in_whole_mebibytes(
    geometry: ModelGeometry, memory: str, device: str
) -> None:
    got = plan_worker(geometry, dataclasses.replace(wishes(memory), device=device))
    model_bytes = got.resident_bytes + got.base_bytes + got.kv_bytes
    on_host = 0 if device == "gpu" else model_bytes
    assert got.worker_memory_bytes % MIB == 0
    assert 0 <= got.worker_memory_bytes - (on_host + got.overhead_bytes) < MIB
    assert got.overhead_bytes >= PROCESS_BYTES + WORK_SPACE_BYTES
    assert got.device_bytes == (model_bytes if device == "gpu" else 0)


@given(geometry=geometries, memory=memories, policy=policies)
def test_a_limit_of_the_planned_memory_is_enough(geometry: ModelGeometry, memory: str, policy: str) -> None:
    asked = dataclasses.replace(wishes(memory), miss_policy=policy)
    got = plan_worker(geometry, asked)
    limited = plan_worker(geometry, dataclasses.replace(asked, memory_limit_bytes=got.worker_memory_bytes))
    assert limited.fits == got.fits


def test_a_limit_below_the_plan_is_refused_with_the_figure() -> None:
    needed = plan().worker_memory_bytes
    short = plan(memory_limit_bytes=needed - MIB)
    assert not short.fits
    [problem] = short.problems
    assert f"raise it to {as_quantity(needed)} or more" in problem
    assert plan(memory_limit_bytes=needed).fits


@given(geometry=geometries, limit=st.integers(1, 2**42), policy=policies)
def test_auto_fills_the_limit_and_stays_within_it(geometry: ModelGeometry, limit: int, policy: str) -> None:
    asked = dataclasses.replace(wishes("auto"), miss_policy=policy, memory_limit_bytes=limit)
    got = plan_worker(geometry, asked)
    if not got.fits:
        figure = got.problems[0].rsplit("raise it to ", 1)[1].split()[0]
        assert whole_bytes(figure) > limit
        assert plan_worker(geometry, dataclasses.replace(asked, memory_limit_bytes=whole_bytes(figure))).fits
        return
    total = got.resident_bytes + got.base_bytes + got.kv_bytes + got.overhead_bytes
    assert total <= limit
    assert got.slots == got.total_experts or total + 2 * got.slot_bytes > limit - 64


def test_auto_without_a_limit_says_what_to_set() -> None:
    with pytest.raises(BudgetError, match=r"auto needs a memory limit.*resources\.limits\.memory"):
        plan("auto").check()


@given(geometry=geometries, policy=policies)
def test_auto_on_a_gpu_leaves_the_slots_to_the_worker_and_plans_the_rest(geometry: ModelGeometry, policy: str) -> None:
    asked = dataclasses.replace(wishes("auto"), miss_policy=policy, device="gpu")
    got, quarter = plan_worker(geometry, asked), plan_worker(geometry, dataclasses.replace(asked, memory=QUARTER))
    assert got.fits
    assert got.is_left_to_worker
    assert (got.slots, got.resident_bytes) == (0, 0)
    assert got.worker_memory_bytes == quarter.worker_memory_bytes
    assert got.device_bytes == got.base_bytes + got.kv_bytes + got.min_bytes


def test_auto_on_a_gpu_is_held_to_the_hosts_limit_like_any_other() -> None:
    [problem] = plan("auto", device="gpu", memory_limit_bytes=MIB).problems
    needed = plan("auto", device="gpu").worker_memory_bytes
    assert "is below the plan" in problem
    assert plan("auto", device="gpu", memory_limit_bytes=needed).fits


def test_on_a_gpu_the_host_holds_neither_slots_nor_kv() -> None:
    small, large = plan("20%", device="gpu"), plan("100%", device="gpu", max_concurrency=64)
    assert small.worker_memory_bytes == large.worker_memory_bytes
    assert large.device_bytes > small.device_bytes


def test_pinned_experts_that_the_model_lacks_are_named() -> None:
    with pytest.raises(BudgetError, match=r"does not have: 64 of layer 0, 0 of layer 16; layers with experts are 0 to"):
        plan(pinned=(ExpertId(0, 64), ExpertId(3, 3), ExpertId(16, 0))).check()


def test_pinned_experts_beyond_a_layers_minimum_take_places_of_their_own() -> None:
    pinned = tuple(ExpertId(0, index) for index in range(20))
    assert plan(pinned=pinned).min_bytes == (16 * 8 + 2 + 12) * plan().slot_bytes
    assert plan(pinned=pinned, miss_policy="load").min_bytes == (8 + 20) * plan().slot_bytes


def test_the_time_to_load_counts_base_weights_and_slots() -> None:
    got = plan()
    assert got.load_seconds(bytes_per_second=1e9) == (got.base_bytes + got.resident_bytes) / 1e9


@given(num_bytes=st.integers(1, 2**60))
def test_a_quantity_that_is_shown_is_never_less(num_bytes: int) -> None:
    assert 0 <= whole_bytes(as_quantity(num_bytes)) - num_bytes < MIB


def test_a_share_is_of_whole_slots_and_not_of_the_experts_own_bytes() -> None:
    odd = dataclasses.replace(OLMOE, grid=dataclasses.replace(OLMOE.grid, expert_bytes=1001))
    assert slot_bytes(odd.grid) == 1024
    assert plan_worker(odd, wishes("100%")).slots == 1024
