"""Resident shares: lists, ranges, ranges with a step, and what is refused."""

from __future__ import annotations

import pytest

from emoe.cli.shares import parse_shares


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        pytest.param("25%,40%", (0.25, 0.4), id="list"),
        pytest.param("0.5", (0.5,), id="fraction"),
        pytest.param("10%..100%", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0), id="range"),
        pytest.param("20%..35%/5%", (0.2, 0.25, 0.3, 0.35), id="step"),
        pytest.param("15% .. 40%", (0.15, 0.25, 0.35), id="last beyond the end"),
        pytest.param("40%,25%..40%/15%", (0.4, 0.25), id="each once"),
    ],
)
def test_shares_are_read(text: str, shares: tuple[float, ...]) -> None:
    assert parse_shares(text) == shares


@pytest.mark.parametrize("text", ["", "0%", "101%", "x", "50%..10%", "10%..", "10%..90%/0%", "0.1..1/0.0001"])
def test_what_is_no_share_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"no share|goes down"):
        parse_shares(text)
