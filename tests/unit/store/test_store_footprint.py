from __future__ import annotations

from fractions import Fraction

import pytest
import store_samples
from hypothesis import given
from hypothesis import strategies as st

from emoe.core.memory import parse_memory
from emoe.store.footprint import measure
from emoe.store.store import ExpertStore


def test_the_footprint_adds_up_to_every_tensor(store: ExpertStore) -> None:
    footprint = measure(store)
    assert footprint.total_bytes == sum(tensor.nbytes for tensor in store_samples.tensors().values())
    assert footprint.base_bytes == sum(tensor.nbytes for tensor in store_samples.base_tensors().values())
    assert footprint.num_experts_total == store_samples.LAYERS * store_samples.EXPERTS
    assert footprint.expert_share_ratio == pytest.approx(footprint.all_expert_bytes / footprint.total_bytes)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("25%", 250),
        ("12.5 %", 125),
        ("100%", 1000),
        ("2GiB", 2 << 30),
        ("2Gi", 2 << 30),
        ("1.5gib", 3 << 29),
        ("512MB", 512_000_000),
        ("512M", 512_000_000),
        ("4kB", 4000),
        ("1024", 1024),
        (" 7B ", 7),
    ],
)
def test_memory_is_read_in_percent_and_units(text: str, num_bytes: int) -> None:
    assert parse_memory(text, total_bytes=1000) == num_bytes


@pytest.mark.parametrize(
    "text", ["", "lots", "-1GiB", "25 percent", "1e9", "2GiB 3MiB", "٣", "nan%", "1_000", "%", "9" * 40]
)
def test_memory_that_is_not_understood_says_how_to_write_it(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 25%, 2GiB, 512MB"):
        parse_memory(text, total_bytes=1000)


@pytest.mark.parametrize("text", ["0", "0%", "0.05%", "0.4B"])
def test_memory_below_one_byte_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="less than one byte"):
        parse_memory(text, total_bytes=1000)


@given(st.integers(1, 10**15))
def test_a_plain_number_is_bytes(num_bytes: int) -> None:
    assert parse_memory(str(num_bytes), total_bytes=1) == num_bytes


@given(st.decimals(min_value="0.01", max_value=100, places=2), st.integers(10_000, 10**15))
def test_a_percentage_is_exact_and_rounded_down(percent: object, total_bytes: int) -> None:
    exact = Fraction(str(percent)) * total_bytes / 100
    assert parse_memory(f"{percent}%", total_bytes=total_bytes) == int(exact)


@given(st.text(max_size=12))
def test_any_text_is_a_number_of_bytes_or_a_value_error(text: str) -> None:
    try:
        assert parse_memory(text, total_bytes=1000) >= 1
    except ValueError as error:
        assert "memory" in str(error)  # noqa: PT017 - most inputs raise, some are valid
