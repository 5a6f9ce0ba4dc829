"""Figures as people read them in a condition's message; coarse enough that a message changes only when it says more."""

from __future__ import annotations

import math

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SENTENCE_CHARACTERS = 400
_MESSAGE_CHARACTERS = 2000


def say_bytes(num_bytes: float) -> str:
    power = 0
    while num_bytes >= 1024 and power < len(_UNITS) - 1:
        num_bytes, power = num_bytes / 1024, power + 1
    return f"{num_bytes:.0f} {_UNITS[power]}" if power == 0 or num_bytes >= 100 else f"{num_bytes:.1f} {_UNITS[power]}"


def round_seconds(seconds: float) -> int:
    """To 5 s below a minute, to half a minute below ten, to the minute above; up, as an arrival is promised."""
    step = 5 if seconds < 60 else 30 if seconds < 600 else 60
    return math.ceil(seconds / step) * step


def say_seconds(seconds: float) -> str:
    whole = round_seconds(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left} min"
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


def one_line(text: str, *, max_characters: int = _SENTENCE_CHARACTERS) -> str:
    """Line breaks gone, the middle left out where it is long: beginnings say where, ends say what."""
    line = " ".join(text.split())
    if len(line) <= max_characters:
        return line
    half = (max_characters - 5) // 2
    return f"{line[:half]} ... {line[-half:]}"


def join_messages(messages: list[str]) -> str:
    """Each once, in the order given, and no longer than a person would read."""
    return one_line("; ".join(dict.fromkeys(messages)), max_characters=_MESSAGE_CHARACTERS)
