"""Packed weights: what oneDNN computes from them is what torch computes from plain ones, wherever their bytes lie."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import gc
import logging
import types
import weakref
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emoe.worker import onednn

packs = pytest.mark.skipif(not onednn.can_pack(), reason="no bfloat16 products of this processor, or torch lacks them")
SHAPES = [(64, 32), (128, 64), (192, 96), (448, 64), (1024, 320), (40_000, 32)]


@pytest.fixture
def asked_anew() -> Iterator[None]:
    """What the process decided is decided again, before and after."""
    onednn.can_pack.cache_clear()
    yield
    onednn.can_pack.cache_clear()


def random_weight(rows: int, columns: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).bfloat16()


def packed_copy(weight: torch.Tensor) -> torch.Tensor:
    order = onednn.packed_order(*weight.shape)
    memory = weight.clone()
    onednn.pack_in_place(memory, order)
    return onednn.view_as_packed(memory, order)


def assert_one_rounding_apart(ours: torch.Tensor, reference: torch.Tensor) -> None:
    scale = float(reference.abs().max())
    torch.testing.assert_close(ours, reference, rtol=2**-7, atol=2**-10 * scale)


@packs
@pytest.mark.parametrize("num_rows", [1, 2, 3, 8, 33])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_weight_packed_in_our_memory_gives_torchs_products(shape: tuple[int, int], num_rows: int) -> None:
    weight, x = random_weight(*shape), random_weight(num_rows, shape[1], seed=1)
    bias = random_weight(1, shape[0], seed=2)[0]
    view = packed_copy(weight)
    assert_one_rounding_apart(onednn.linear(x, view), torch.mm(x, weight.t()))
    assert_one_rounding_apart(onednn.linear(x, view, bias), torch.addmm(bias, x, weight.t()))


@packs
@pytest.mark.parametrize("num_rows", [1, 7])
def test_memory_of_ours_and_torchs_own_give_the_same_bits(num_rows: int) -> None:
    weight, x = random_weight(192, 96), random_weight(num_rows, 96, seed=1)
    assert onednn.packable(weight)
    assert torch.equal(onednn.linear(x, packed_copy(weight)), onednn.linear(x, onednn.pack(weight)))


@packs
@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 260), columns=st.integers(1, 130))
def test_a_shape_fits_in_place_only_where_its_products_are_right(rows: int, columns: int) -> None:
    order = onednn.packed_order(rows, columns)
    assert order.num_bytes >= rows * columns * 2
    if not order.fits_in_place:
        assert rows % 64 or columns % 32, "whole blocks need no padding"
        return
    weight, x = random_weight(rows, columns), random_weight(3, columns, seed=1)
    assert_one_rounding_apart(onednn.linear(x, packed_copy(weight)), torch.mm(x, weight.t()))


@packs
def test_a_weight_packed_by_runs_of_rows_has_the_bytes_of_one_packed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "RUN_BYTES", 1 << 18)
    weight = random_weight(1600, 512)
    order = onednn.packed_order(1600, 512)
    by_runs, as_whole = weight.clone(), weight.clone()
    onednn.pack_in_place(by_runs, order)
    onednn.pack_in_place(as_whole, dataclasses.replace(order, rows_at_once=1600))
    assert order.rows_at_once < 1600
    assert torch.equal(by_runs, as_whole)
    assert not torch.equal(by_runs, weight)


@packs
def test_a_view_keeps_its_memory_and_nothing_else_does() -> None:
    weight, x = random_weight(128, 64), random_weight(2, 64, seed=1)
    order = onednn.packed_order(128, 64)
    arena = torch.empty(4, 128, 64, dtype=torch.bfloat16)
    arena[2] = weight
    onednn.pack_in_place(arena[2], order)
    view = onednn.view_as_packed(arena[2], order)
    del arena
    gc.collect()
    others = [torch.full((4, 128, 64), float("nan"), dtype=torch.bfloat16) for _ in range(20)]
    assert_one_rounding_apart(onednn.linear(x, view), torch.mm(x, weight.t()))
    assert len(others) == 20
    held, opaque = weakref.ref(view._emoe_memory), weakref.ref(view)  # type: ignore[attr-defined]
    del view
    gc.collect()
    assert held() is opaque() is None


@packs
def test_a_view_sees_what_its_memory_is_given_next() -> None:
    first, second, x = random_weight(128, 64), random_weight(128, 64, seed=5), random_weight(2, 64, seed=1)
    order = onednn.packed_order(128, 64)
    memory = first.clone()
    onednn.pack_in_place(memory, order)
    view = onednn.view_as_packed(memory, order)
    memory.copy_(second)
    onednn.pack_in_place(memory, order)
    assert_one_rounding_apart(onednn.linear(x, view), torch.mm(x, second.t()))


@packs
def test_threads_that_pack_at_once_do_not_disturb_each_other_nor_their_thread_counts() -> None:
    order = onednn.packed_order(192, 64)
    weights = [random_weight(192, 64, seed=seed) for seed in range(24)]
    memories = [weight.clone() for weight in weights]
    before = torch.get_num_threads()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda memory: onednn.pack_in_place(memory, order), memories))
        counts = set(pool.map(lambda _: torch.get_num_threads(), range(8)))
    assert counts == {before} == {torch.get_num_threads()}
    x = random_weight(2, 64, seed=99)
    for weight, memory in zip(weights, memories, strict=True):
        assert_one_rounding_apart(onednn.linear(x, onednn.view_as_packed(memory, order)), torch.mm(x, weight.t()))


@packs
@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(64, 32),
        torch.zeros(64, 32, dtype=torch.float16),
        torch.zeros(2, 64, 32, dtype=torch.bfloat16),
        torch.zeros(32, 64, dtype=torch.bfloat16).t(),
    ],
    ids=["float32", "float16", "three sides", "transposed"],
)
def test_what_is_no_plain_bfloat16_matrix_is_not_packed(weight: torch.Tensor) -> None:
    assert not onednn.packable(weight)


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize("difference", [0.5, float("nan")])
def test_a_trial_that_fails_means_plain_weights_and_is_said_once(
    difference: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onednn, "_has_bfloat16_products", lambda: True)
    monkeypatch.setattr(onednn, "_try_out", lambda: difference)
    with caplog.at_level(logging.WARNING):
        assert not onednn.can_pack()
        assert not onednn.packable(random_weight(64, 32))
    assert [record.message for record in caplog.records if "plain order" in record.message] == caplog.messages
    assert len(caplog.records) == 1


@pytest.mark.usefixtures("asked_anew")
def test_a_torch_without_the_interface_means_plain_weights_and_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onednn, "_has_bfloat16_products", lambda: True)
    monkeypatch.setattr(onednn, "_libtorch", types.SimpleNamespace)
    with caplog.at_level(logging.WARNING):
        assert not onednn.can_pack()
        assert not onednn.can_pack()
    assert len(caplog.records) == 1


@pytest.mark.usefixtures("asked_anew")
def test_a_processor_without_bfloat16_products_stays_plain_without_a_word(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not onednn.can_pack()
    assert not caplog.records
