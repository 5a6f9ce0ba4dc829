"""Resident shares as they are written: 25%,40%; 10%..100%, in steps of ten points; 20%..60%/5%, in steps of five."""

from __future__ import annotations

DEFAULT_STEP = "10%"
MAX_SHARES = 1_000


def parse_shares(text: str) -> tuple[float, ...]:
    """In the order given, each once. ValueError says which piece is wrong, and why."""
    shares: dict[float, None] = {}
    for piece in text.split(","):
        shares.update(dict.fromkeys(_parse_piece(piece.strip())))
    return tuple(shares)


def _parse_piece(piece: str) -> list[float]:
    if ".." not in piece:
        return [_parse_share(piece)]
    ends, _, step_text = piece.partition("/")
    first, last = (_parse_share(end) for end in ends.split("..", maxsplit=1))
    step = _parse_share(step_text or DEFAULT_STEP)
    if last < first or (last - first) / step > MAX_SHARES:
        raise ValueError(f"{piece!r} goes down, or has more than {MAX_SHARES} steps; write it like 20%..60%/5%")
    # A millionth more than whole steps: 0.1 + 9 * 0.1 is not quite 1.
    return [round(first + step * number, 9) for number in range(int((last - first) / step + 1e-6) + 1)]


def _parse_share(text: str) -> float:
    try:
        share = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ValueError(f"{text!r} is no share above 0 and up to 100%")
    return share
