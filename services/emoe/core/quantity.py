"""Kubernetes' Quantity: a number with a suffix, such as 8Gi, 500m or 1e9. Exact: no float is ever made of it.

The grammar is that of `k8s.io/apimachinery/pkg/api/resource`: case counts, `m` is a thousandth and `M` a million.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

MAX_CHARACTERS = 63
PATTERN = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]{1,2})?$"

_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_SPLIT = re.compile(r"([+-]?[0-9.]+)([a-zA-Z]?.*)", re.DOTALL)


def parse_quantity(text: str) -> Fraction:
    """The exact value. ValueError for what Kubernetes would not take either."""
    if len(text) > MAX_CHARACTERS or not re.fullmatch(PATTERN, text, re.ASCII):
        raise ValueError(f"{text[:MAX_CHARACTERS]!r} is no quantity; write it like 8Gi, 500M, 250m or 1073741824")
    match = _SPLIT.fullmatch(text)
    assert match, "the pattern has matched"
    number, suffix = match[1], match[2]
    whole = Fraction(number if number[-1] != "." else number[:-1])
    if suffix in _BINARY:
        return whole * (1 << _BINARY[suffix])
    power = _DECIMAL[suffix] if suffix in _DECIMAL else int(suffix[1:])
    return whole * (Fraction(10**power) if power >= 0 else Fraction(1, 10**-power))


def whole_bytes(text: str) -> int:
    """Bytes, rounded up as Kubernetes does. ValueError if it is no quantity, or negative."""
    value = parse_quantity(text)
    if value < 0:
        raise ValueError(f"{text!r} is negative; bytes are 0 or more")
    return math.ceil(value)
