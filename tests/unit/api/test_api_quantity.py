from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emoe.core.memory import MIN_BYTES, parse_expert_memory
from emoe.core.quantity import MAX_CHARACTERS, parse_quantity, whole_bytes

POWERS = {
    **{"n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000), "": Fraction(1)},
    **{suffix: Fraction(1000**power) for power, suffix in enumerate("kMGTPE", 1)},
    **{f"{suffix}i": Fraction(1024**power) for power, suffix in enumerate("KMGTPE", 1)},
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8Gi", 8 * 2**30),
        ("500M", 500_000_000),
        ("250m", Fraction(1, 4)),
        ("1e3", 1000),
        ("1E3", 1000),
        ("1E", 10**18),
        ("1e-2", Fraction(1, 100)),
        (".5Ki", 512),
        ("1.", 1),
        ("+2k", 2000),
        ("-1.5", Fraction(-3, 2)),
        ("9223372036854775807", 2**63 - 1),
    ],
    ids=lambda value: str(value),
)
def test_a_quantity_has_kubernetes_own_value(text: str, value: Fraction) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "8GB",
        "8gi",
        "8 Gi",
        " 8",
        "8Gi\n",
        "1K",
        "1ki",
        "0x10",
        "1e",
        "1e1.5",
        "1e100",
        "--1",
        "5%",
        "٣",
        "inf",
    ],
    ids=repr,
)
def test_what_kubernetes_would_not_take_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no quantity; write it like 8Gi"):
        parse_quantity(text)


@given(
    number=st.decimals(min_value=0, max_value=10**9, allow_nan=False, allow_infinity=False, places=3),
    suffix=st.sampled_from(sorted(POWERS)),
)
def test_parsing_is_exact_for_every_suffix(number: object, suffix: str) -> None:
    assert parse_quantity(f"{number}{suffix}") == Fraction(str(number)) * POWERS[suffix]


@given(mantissa=st.integers(0, 10**9), exponent=st.integers(-30, 30))
def test_parsing_is_exact_for_exponents(mantissa: int, exponent: int) -> None:
    assert parse_quantity(f"{mantissa}e{exponent}") == mantissa * Fraction(10) ** exponent


@given(text=st.text(max_size=12) | st.from_regex(r"[0-9.eEkKmMi+-]{0,12}", fullmatch=True))
def test_a_sign_changes_nothing_but_the_sign(text: str) -> None:
    try:
        value = parse_quantity(text)
    except ValueError:
        return
    negated = text[1:] if text.startswith("-") else f"-{text.removeprefix('+')}"
    assert parse_quantity(negated) == -value


def test_a_text_of_any_length_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="is no quantity"):
        parse_quantity("9" * (MAX_CHARACTERS + 1))


@given(num_bytes=st.integers(1, 10**12), divisor=st.integers(1, 1000))
def test_bytes_are_rounded_up(num_bytes: int, divisor: int) -> None:
    text = f"{num_bytes * 1000 // divisor}m"
    assert 0 <= whole_bytes(text) - parse_quantity(text) < 1


def test_negative_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        whole_bytes("-1Gi")


@given(percent=st.decimals(min_value="0.001", max_value=100, places=3), total=st.integers(0, 2**50))
def test_a_share_is_of_all_experts_and_rounded_down(percent: object, total: int) -> None:
    got = parse_expert_memory(f"{percent}%").resolve(all_expert_bytes=total, spare_bytes=None)
    exact = Fraction(str(percent)) / 100 * total
    assert got <= exact < got + 1


@given(num_bytes=st.integers(MIN_BYTES, 2**50))
def test_a_quantity_of_memory_is_taken_as_it_is(num_bytes: int) -> None:
    memory = parse_expert_memory(str(num_bytes))
    assert memory.resolve(all_expert_bytes=1, spare_bytes=None) == num_bytes


def test_auto_takes_what_is_spared_and_no_more_than_all() -> None:
    auto = parse_expert_memory("auto")
    assert auto.resolve(all_expert_bytes=100, spare_bytes=40) == 40
    assert auto.resolve(all_expert_bytes=100, spare_bytes=400) == 100
    with pytest.raises(ValueError, match="needs a memory limit"):
        auto.resolve(all_expert_bytes=100, spare_bytes=None)


@pytest.mark.parametrize("text", ["100.1%", "101%", "-1%", "25 %", "%", "Auto", "8GiB", ""], ids=repr)
def test_memory_that_is_none_says_which_forms_there_are(text: str) -> None:
    with pytest.raises(ValueError, match=r"a share up to 100% \(25%\), a quantity \(8Gi\) or auto"):
        parse_expert_memory(text)


@pytest.mark.parametrize("text", ["25", "8m", "-8Gi", "63Ki"])
def test_memory_of_next_to_nothing_is_taken_for_a_slip(text: str) -> None:
    with pytest.raises(ValueError, match="less than 64Ki; write a share as 25%"):
        parse_expert_memory(text)
